"""Layers give Volatility exact bytes or its own error, within bounds, and end when they are told to."""

import pytest
from volatility3.framework import contexts, exceptions, interfaces

from qvmi.arch import paging
from qvmi.semantics.volatility_bridge.interruption import Interrupted, Interruption
from qvmi.semantics.volatility_bridge.layers import (
    LAYERS,
    MAX_READ,
    GuestMemoryLayer,
    ScanFailed,
)
from tests.synthetic.ram import Ram

PAGE = 4096
RAM_START = 0x10000
RAM_SIZE = 16 * PAGE
ROOT = RAM_START
MAPPED = 0xFFFF_8880_0000_0000
MAPPED_57 = 0xFF11_0000_0000_0000
PRESENT = 3
TEXT = b"some bytes of the guest"


class Needle(interfaces.layers.ScannerInterface):  # type: ignore[misc] # Volatility has no types
    """This finds a text, or fails."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.text = text

    def __call__(self, data: bytes, data_offset: int) -> list[int]:
        if not self.text:
            raise RuntimeError("of the scanner's own")
        return [data_offset + data.index(self.text)] if self.text in data else []


def ram_with_a_page(va: int, levels: int) -> Ram:
    """This is RAM whose page tables map one page, which holds the text, at an address."""
    ram = Ram(RAM_SIZE, start=RAM_START)
    page = RAM_START + levels * PAGE
    for level in range(levels):
        index = va >> (12 + 9 * (levels - 1 - level)) & 511
        entry = (RAM_START + (level + 1) * PAGE) | PRESENT
        at = level * PAGE + 8 * index
        ram.buffer[at : at + 8] = entry.to_bytes(8, "little")
    ram.buffer[page - RAM_START : page - RAM_START + len(TEXT)] = TEXT
    return ram


def layers(ram: Ram, geometry: str = "4-level") -> tuple[contexts.Context, Interruption]:
    context, interruption = contexts.Context(), Interruption()
    context.add_layer(
        GuestMemoryLayer(context, "layers.p", "p", memory=ram, interruption=interruption)
    )
    context.config["layers.v.memory_layer"] = "p"
    context.config["layers.v.page_map_offset"] = ROOT
    context.add_layer(LAYERS[geometry](context, "layers.v", "v"))
    return context, interruption


def test_physical_memory_is_exact_or_an_error_of_volatilitys() -> None:
    context, _ = layers(ram_with_a_page(MAPPED, 4))
    memory = context.layers["p"]
    assert memory.read(RAM_START + 4 * PAGE, len(TEXT)) == TEXT
    assert memory.maximum_address == RAM_START + RAM_SIZE - 1
    for place in (0, RAM_START - 1, RAM_START + RAM_SIZE - 1):
        assert not memory.is_valid(place, 2)
        with pytest.raises(exceptions.InvalidAddressException):
            memory.read(place, 2)


def test_what_is_no_ram_is_read_as_zeros_where_that_is_asked_for() -> None:
    ram = ram_with_a_page(MAPPED, 4)
    context, _ = layers(ram)
    ram.buffer[0:1], ram.buffer[-1:] = b"a", b"z"
    assert context.layers["p"].read(RAM_START - 2, 4, pad=True) == b"\0\0a\0"
    assert context.layers["p"].read(RAM_START + RAM_SIZE - 1, 3, pad=True) == b"z\0\0"


@pytest.mark.parametrize("name", ["p", "v"])
def test_a_length_that_a_guest_made_up_takes_no_memory(name: str) -> None:
    context, _ = layers(ram_with_a_page(MAPPED, 4))
    for length in (MAX_READ + 1, 1 << 60, -1):
        with pytest.raises(exceptions.InvalidAddressException):
            context.layers[name].read(RAM_START, length, pad=True)


@pytest.mark.parametrize("name", ["p", "v"])
def test_nothing_is_written(name: str) -> None:
    ram = ram_with_a_page(MAPPED, 4)
    context, _ = layers(ram)
    before = ram.buffer[:]
    place = MAPPED if name == "v" else RAM_START
    with pytest.raises(exceptions.LayerException):
        context.layers[name].write(place, b"x")
    assert ram.buffer[:] == before


@pytest.mark.parametrize(
    ("geometry", "va", "levels"),
    [(paging.X86_64_4_LEVEL, MAPPED, 4), (paging.X86_64_5_LEVEL, MAPPED_57, 5)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_page_is_found_by_four_and_by_five_levels(
    geometry: paging.Geometry, va: int, levels: int
) -> None:
    context, _ = layers(ram_with_a_page(va, levels), geometry.name)
    layer = context.layers["v"]
    assert layer.read(va, len(TEXT)) == TEXT
    assert layer.canonicalize(va & layer.address_mask) == va
    with pytest.raises(exceptions.InvalidAddressException):
        layer.read(va + PAGE, 1)


def test_a_scan_finds_what_is_there_and_fails_aloud() -> None:
    context, _ = layers(ram_with_a_page(MAPPED, 4))
    layer = context.layers["v"]
    found = list(layer.scan(context, Needle(b"bytes")))
    assert found == [(MAPPED & layer.address_mask) + TEXT.index(b"bytes")]
    with pytest.raises(ScanFailed, match="of the scanner's own"):
        list(layer.scan(context, Needle(b"")))


@pytest.mark.parametrize(("name", "place"), [("p", RAM_START), ("v", MAPPED)])
def test_a_read_that_nobody_waits_for_ends_also_where_it_is_cached(name: str, place: int) -> None:
    context, interruption = layers(ram_with_a_page(MAPPED, 4))
    context.layers[name].read(place, 8)
    interruption.ask()
    with pytest.raises(Interrupted):
        context.layers[name].read(place, 8)
