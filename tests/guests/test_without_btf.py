"""A kernel without BTF, or with one that lies: a symbol file of the user's, or advice to give one."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Pa, Process, UnknownGuest, UsageError
from qvmi.symbols.isf import write_isf
from qvmi.symbols.live import LiveSymbols
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import guest_ram

HIDDEN_MAGIC: Final = b"\0\0"
"""In place of 0xeb9f, by which BTF is known (Documentation/bpf/btf.rst)."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """This is a guest that stands still and whose BTF cannot be known any more.

    Attributes:
        rows: its processes, as they were seen before.
        modules: the same of its modules.
        isf: a symbol file made before.
    """

    guest: Guest
    rows: tuple[Process, ...]
    modules: tuple[qvmi.Module, ...]
    isf: Path


@pytest.fixture(scope="module", params=KERNELS)
def hidden(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hidden]:
    isf = tmp_path_factory.mktemp("isf") / "guest.json"
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(request.param), paused=True)
        made, btf = asyncio.run(_look_and_save(guest, isf))
        with guest_ram(guest) as ram:
            ram.write(btf, HIDDEN_MAGIC)
        yield made


async def _look_and_save(guest: Guest, isf: Path) -> tuple[Hidden, Pa]:
    """This looks at a guest while it can be understood, and says where its BTF lies."""
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        kernel = machine.guest.kernel
        assert isinstance(kernel.symbols, LiveSymbols)
        write_isf(kernel.symbols, isf, slide=kernel.slide, banner=kernel.banner)
        btf = kernel.symbols.find("__start_BTF")
        assert btf is not None
        rows, modules = machine.guest.processes().items, machine.guest.modules().items
        return Hidden(guest, rows, modules, isf), kernel.space.translate(btf)


def test_says_what_is_missing_and_what_to_do(hidden: Hidden) -> None:
    async def attach() -> None:
        async with qvmi.attach(hidden.guest.qmp, use_cache=False) as machine:
            machine.guest.processes()

    with pytest.raises(UnknownGuest, match=r"BTF.*--isf") as caught:
        asyncio.run(attach())
    assert any("kernel image at" in line for line in caught.value.evidence)


def test_uses_the_users_isf(hidden: Hidden) -> None:
    async def attach() -> tuple[tuple[Process, ...], tuple[qvmi.Module, ...], qvmi.GuestFacts]:
        async with qvmi.attach(hidden.guest.qmp, use_cache=False, isf=hidden.isf) as machine:
            linux = machine.guest
            return linux.processes().items, linux.modules().items, linux.facts()

    processes, modules, facts = asyncio.run(attach())
    assert processes == hidden.rows
    assert modules == hidden.modules
    assert "by the ISF file given" in " ".join(item.source for item in facts.evidence)


@pytest.mark.parametrize("hidden", ["6.1"], indirect=True)
def test_a_symbol_file_of_another_kernel_is_refused(
    hidden: Hidden, lab: Lab, tmp_path: Path
) -> None:
    other_isf = tmp_path / "other.json"
    with ExitStack() as stack:
        other = GuestPool(lab, stack).restore(GuestConfig("5.10"), paused=True)
        asyncio.run(_look_and_save(other, other_isf))

    async def attach() -> None:
        async with qvmi.attach(hidden.guest.qmp, use_cache=False, isf=other_isf) as machine:
            machine.guest.processes()

    with pytest.raises(UsageError, match="not of the kernel that runs here") as caught:
        asyncio.run(attach())
    assert all(series in str(caught.value) for series in ("5.10", "6.1"))
