"""The memory map from ``info mtree``: real machines, old and new forms, and text that is none."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, PaRange
from qvmi.errors import QmpProtocolError
from qvmi.memory.memory_map import (
    MemoryBackend,
    MemoryMap,
    MemoryRegion,
    RegionKind,
    parse_memory_map,
)
from tests.wire.transcript import NAMES, Transcript

GIB = 1 << 30
MAIN = MemoryBackend("/objects/main", "memory-backend-file", 6 * GIB, share=True, mem_path="/ram")
HOT = MemoryBackend("/objects/hot", "memory-backend-memfd", GIB, share=True)
OWN = MemoryBackend("/objects/own", "memory-backend-ram", GIB // 2, share=False)
NV = MemoryBackend(
    "/objects/nv", "memory-backend-file", 1 << 27, share=True, mem_path="/nv", file_offset=1 << 20
)


def recorded(name: str, *backends: MemoryBackend, owners: bool = True) -> MemoryMap:
    line = "info mtree -f -o" if owners else "info mtree -f"
    return parse_memory_map(Transcript.load(name).printed(line), backends)


def view(*lines: str, name: str = "memory") -> str:
    head = f'FlatView #0\n AS "{name}", root: system\n Root memory region: system\n'
    return head + "".join(f"  {line}\n" for line in lines) + "\n"


def one(line: str, *backends: MemoryBackend) -> MemoryRegion:
    (region,) = parse_memory_map(view(line), backends).regions
    return region


def places(memory_map: MemoryMap) -> list[tuple[Any, ...]]:
    return [(r.start, r.end, str(r.kind), r.name, r.offset) for r in memory_map.regions]


def test_q35_splits_ram_above_4_gib_and_puts_dimms_behind() -> None:
    memory_map = recorded("q35_large", MAIN, HOT, OWN, NV)
    assert [(r.start, r.end, r.offset, r.backend) for r in memory_map.ram] == [
        (0, 0xA0000, 0, MAIN),
        (0x100000, 0x80000000, 0x100000, MAIN),
        (0x100000000, 0x200000000, 0x80000000, MAIN),
        (0x200000000, 0x240000000, 0, HOT),
        (0x240000000, 0x260000000, 0, OWN),
        (0x260000000, 0x268000000, 0, NV),
    ]
    assert memory_map.ram_ranges == (
        PaRange(Pa(0), Pa(0xA0000)),
        PaRange(Pa(0x100000), Pa(0x80000000)),
        PaRange(Pa(0x100000000), Pa(0x268000000)),
    )
    assert memory_map.backends == (MAIN, HOT, OWN, NV)


def test_persistent_memory_is_marked_and_its_file_offset_counted() -> None:
    stick = recorded("q35_large", NV).ram[-1]
    assert (stick.nonvolatile, stick.kind, stick.file_offset) == (True, RegionKind.RAM, 1 << 20)


def test_pc_has_ram_of_two_nodes_around_the_hole() -> None:
    assert [(r.start, r.end, r.name, r.offset) for r in recorded("pc_numa").ram] == [
        (0, 0xC0000, "node0", 0),
        (0x100000, 0x80000000, "node0", 0x100000),
        (0x80000000, 0xC0000000, "node1", 0),
        (0x100000000, 0x180000000, "node1", 0x40000000),
    ]


def test_ram_that_the_chipset_write_protects_is_rom_of_the_same_backend() -> None:
    ram = MemoryBackend("/objects/pc.ram", "memory-backend-ram", 256 << 20, share=False)
    shadow = recorded("pc", ram).region_at(Pa(0xC0000))
    assert shadow is not None
    assert (shadow.kind, shadow.offset, shadow.backend) == (RegionKind.ROM, 0xC0000, ram)


def test_memory_of_a_device_is_no_system_ram() -> None:
    memory_map = recorded("pc")
    video = memory_map.region_at(Pa(0xFD000000))
    assert video is not None
    assert (video.kind, video.device, video.backend) == (RegionKind.RAM, True, None)
    assert video not in memory_map.ram


@pytest.mark.parametrize("name", NAMES)
def test_old_output_without_owners_gives_the_same_map(name: str) -> None:
    assert places(recorded(name, owners=False)) == places(recorded(name))


def test_old_output_is_joined_with_backends_by_name() -> None:
    by_name = recorded("q35_large", MAIN, HOT, OWN, NV, owners=False)
    assert by_name.backends == (MAIN, HOT, OWN, NV)
    line = "0000000000000000-00000000000fffff (prio 0, ram): /objects/main"
    assert one(line, MAIN).backend == MAIN


def test_a_region_named_like_a_backend_but_owned_by_something_else_is_not_its() -> None:
    line = "0000000000000000-0000000000000fff (prio 0, ram): main owner:{dev path=/machine/gpu}"
    assert one(line, MAIN).backend is None


def test_an_address_outside_of_memory_has_no_region() -> None:
    memory_map = recorded("q35_large")
    assert memory_map.region_at(Pa(0xA0000)) is None
    assert memory_map.region_at(Pa(0x268000000)) is None
    assert parse_memory_map(view()).region_at(Pa(0)) is None
    last = memory_map.region_at(Pa(0x267FFFFFF))
    assert last is not None
    assert last.nonvolatile


def test_the_smram_view_and_the_port_view_are_not_the_memory() -> None:
    smram = view("0000000000000000-000000000000ffff (prio 0, ram): smram", name="cpu-smm-0")
    ports = 'FlatView #1\n AS "I/O", root: io\n Root memory region: io\n'
    ports += "  0000000000000000-0000000000000fff (prio 0, ram): ports\n\n"
    system = view("0000000000000000-0000000000000fff (prio 0, ram): right")
    memory_map = parse_memory_map(smram + ports + system)
    assert [region.name for region in memory_map.regions] == ["right"]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("pc.ram KVM", ("pc.ram", 0, None, False)),
        ("pc.ram @0000000080000000 KVM KVM", ("pc.ram", 0x80000000, None, False)),
        ("vm ram @home owner:{obj path=/objects/x} KVM", ("vm ram @home", 0, "/objects/x", False)),
        ("/rom@etc/acpi/tables @0000000000001000", ("/rom@etc/acpi/tables", 0x1000, None, False)),
        ("bar owner:{dev id=gpu0} parent:{dev path=/m/p}", ("bar", 0, "id=gpu0", True)),
        ("bar parent:{obj path=/machine/unattached}", ("bar", 0, "/machine/unattached", False)),
        ("bar owner:{obj type=memory-region}", ("bar", 0, "type=memory-region", False)),
        ("bar orphan KVM", ("bar", 0, None, False)),
    ],
)
def test_reads_every_form_of_what_stands_behind_the_kind(
    tail: str, expected: tuple[object, ...]
) -> None:
    region = one(f"0000000000000000-0000000000000fff (prio -7, ram): {tail}")
    assert (region.name, region.offset, region.owner, region.device) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ram", "ram"), ("rom", "rom"), ("romd", "romd"), ("ramd", "ramd"), ("nv-ram", "ram")],
)
def test_tells_kinds_of_memory_apart(kind: str, expected: str) -> None:
    assert one(f"0000000000000000-0000000000000fff (prio 0, {kind}): x").kind == expected


def test_maps_by_kind_and_not_by_name() -> None:
    memory_map = parse_memory_map(
        view(
            "0000000000000000-0000000000000fff (prio 0, i/o): pc.ram",
            "0000000000001000-0000000000001fff (prio 0, ram): vga.mmio",
            "0000000000002000-0000000000002fff (prio 0, rom): ram",
            "0000000000003000-0000000000003fff (prio 0, nv-ram): pc.bios",
        )
    )
    assert memory_map.ram_ranges == (
        PaRange(Pa(0x1000), Pa(0x2000)),
        PaRange(Pa(0x3000), Pa(0x4000)),
    )


@pytest.mark.parametrize("kind", ["i/o", "container"])
def test_what_answers_without_memory_is_left_out(kind: str) -> None:
    line = f"0000000000000000-0000000000000fff (prio 0, {kind}): x"
    assert parse_memory_map(view(line)).regions == ()


@pytest.mark.parametrize(
    "line",
    [
        "0000000000000000-0000000000000fff (prio 0, ram) x",
        "0000000000000000-0000000000000fff (prio 0, magic): x",
        "0000000000000000 (prio 0, ram): x",
        "0000000000001000-0000000000000000 (prio 0, ram): x",
        "000000000000000-0000000000000fff (prio 0, ram): x",
        "No rendered FlatView",
    ],
)
def test_a_malformed_range_is_refused(line: str) -> None:
    with pytest.raises(QmpProtocolError):
        parse_memory_map(view(line))


@pytest.mark.parametrize(
    "lines",
    [
        ("0000000000000000-0000000000000fff (prio 0, ram): a",) * 2,
        (
            "0000000000001000-0000000000001fff (prio 0, ram): high",
            "0000000000000000-0000000000000fff (prio 0, ram): low",
        ),
        ("0000000000000000-0000000000000fff (prio 0, ram): a",) * ((1 << 16) + 1),
    ],
    ids=["overlap", "falling", "too many"],
)
def test_ranges_that_cannot_be_are_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(QmpProtocolError):
        parse_memory_map(view(*lines))


@pytest.mark.parametrize(
    "text",
    ["", "unknown command: 'info mtree'\n", view(name="virtio-net"), "x" * ((10 << 20) + 1)],
    ids=["nothing", "refusal", "no memory", "too long"],
)
def test_text_without_the_systems_memory_is_refused(text: str) -> None:
    with pytest.raises(QmpProtocolError):
        parse_memory_map(text)


@given(
    name=st.sampled_from(NAMES),
    cut=st.tuples(st.integers(0, 20000), st.integers(0, 200)),
    put=st.text(alphabet="0123456789abcdef-:@{}() \n", max_size=20),
)
def test_damaged_text_is_refused_or_gives_a_map_in_order(
    name: str, cut: tuple[int, int], put: str
) -> None:
    text = Transcript.load(name).printed("info mtree -f -o")
    damaged = text[: cut[0]] + put + text[sum(cut) :]
    try:
        memory_map = parse_memory_map(damaged)
    except QmpProtocolError:
        return
    assert all(below.end <= above.start for below, above in pairwise(memory_map.regions))
