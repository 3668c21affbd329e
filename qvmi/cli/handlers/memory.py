"""The commands that look at single addresses: ``read`` and ``translate``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec

from qvmi.addr import Pa, Va
from qvmi.arch.paging import Geometry, Permissions, Step, Translation, steps
from qvmi.cli.declared.values import Place, Space
from qvmi.cli.exit_code import ExitCode, exit_code_of
from qvmi.cli.named_process import named_process
from qvmi.cli.printing.hexdump import hexdump
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.errors import TranslationFault, UsageError
from qvmi.machine.machine import Machine
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address
from qvmi.view import Provenance, View

__all__ = ["MAX_DOCUMENT", "read", "translate"]

Result = TypeVar("Result")

MAX_DOCUMENT: Final = 64 << 20
"""Most bytes in one JSON document, which is made whole in memory; the other forms have no bound."""

_CHUNK: Final = 1 << 20
"""Bytes read at once, a whole number of lines; between two of them Ctrl-C is heard."""

_END_OF_ADDRESSES: Final = 1 << 64
_KIB: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class _Region:
    """This is what is to be read.

    Args:
        start: its first address.
        size: in bytes.
        space: whose addresses they are; None for physical ones.
    """

    start: int
    size: int
    space: AddressSpace | None

    def __post_init__(self) -> None:
        if self.start + self.size > _END_OF_ADDRESSES:
            raise UsageError(f"{self.size} bytes at {self.start:#x} reach beyond the last address")

    @property
    def chunks(self) -> Iterator[tuple[int, int]]:
        """These are the address and the size of each piece that is read at once."""
        end = self.start + self.size
        return ((start, min(_CHUNK, end - start)) for start in range(self.start, end, _CHUNK))

    def read(self, start: int, size: int, view: View) -> bytes:
        """This reads a part of it."""
        if self.space is None:
            return view.memory.read(Pa(start), size)
        return self.space.over(view.memory).read(Va(start), size)


async def read(
    machine: Machine, output: Output, *, place: Place, size: int, space: Space, form: str
) -> ExitCode:
    """This reads bytes, and prints them in the form that was asked for.

    Raises:
        UsageError: what was asked for contradicts itself.
        GuestError, SymbolsError, MemoryFault: there is no such place, or it cannot be read.
    """
    _require_sense(output, place, space, size=size, form=form)
    region = await _region(machine, place, size, space)
    if output.json:
        output.document(await _document(machine, region, space))
        return ExitCode.FINE
    for start, part in region.chunks:
        # Between two of them Ctrl-C is heard.
        data = await machine.query_view(partial(region.read, start, part))
        _PRINTERS[form](output, data, start)
    if form == "hex":
        output.line()
    return ExitCode.FINE


def _require_sense(output: Output, place: Place, space: Space, *, size: int, form: str) -> None:
    if place.symbol and space.kind == "physical":
        raise UsageError(f"{place} is a virtual address: leave --physical out")
    if output.json and form != "dump":
        raise UsageError(f"--json has a form of its own: leave --{form} out")
    if output.json and size > MAX_DOCUMENT:
        raise UsageError(f"{size} bytes are too many for one JSON document: take --raw")
    if form == "raw" and output.is_terminal:
        raise UsageError("raw bytes would disturb the terminal: send them to a file or a pipe")


async def _region(machine: Machine, place: Place, size: int, space: Space) -> _Region:
    if space.kind == "physical":
        return _Region(place.offset, size, None)
    return await machine.query(
        lambda guest: _Region(_address(guest, place), size, _virtual(guest, space))
    )


def _address(guest: LinuxGuest, place: Place) -> int:
    return place.offset + (address(guest.symbols, place.symbol) if place.symbol else 0)


def _virtual(guest: LinuxGuest, space: Space) -> AddressSpace:
    if space.pid is None:
        return guest.kernel.space
    return guest.user_space(named_process(guest, space.pid))


async def _document(machine: Machine, region: _Region, space: Space) -> dict[str, object]:
    def look(view: View) -> str:
        return b"".join(region.read(start, size, view) for start, size in region.chunks).hex()

    data, provenance = await _with_label(machine, look)
    return {
        "space": space.kind,
        "pid": space.pid,
        "address": region.start,
        "size": region.size,
        "data": data,
        "provenance": provenance,
    }


async def _with_label(
    machine: Machine, look: Callable[[View], Result]
) -> tuple[Result, Provenance]:
    """This looks, and says how it was done and for how long the guest stood still for it."""
    before = machine.stood_still_s
    found, label = await machine.query_view(lambda view: (look(view), view.provenance))
    return found, msgspec.structs.replace(label, pause_s=machine.stood_still_s - before)


def _print_dump(output: Output, data: bytes, start: int) -> None:
    for line in hexdump(data, start):
        output.line(line)


def _print_hex(output: Output, data: bytes, _: int) -> None:
    output.part_of_line(data.hex())


def _print_raw(output: Output, data: bytes, _: int) -> None:
    output.raw(data)


_PRINTERS: Final = {"dump": _print_dump, "hex": _print_hex, "raw": _print_raw}


async def translate(machine: Machine, output: Output, *, place: Place, space: Space) -> ExitCode:
    """This shows how the page tables translate an address, or the way to where they do not.

    Raises:
        GuestError, SymbolsError: there is no such process, or no such symbol.
        TranslationFault: the guest unmapped the address just now.
    """
    virtual, va = await machine.query(
        lambda guest: (_virtual(guest, space), Va(_address(guest, place)))
    )
    way, provenance = await _with_label(machine, lambda view: _way(virtual.over(view.memory), va))
    asked = {"pid": space.pid, "provenance": provenance}
    if isinstance(way, _NoWay):
        _show_way(output, virtual.geometry, way.steps, _nowhere(va, way) | asked)
        output.flush()
        output.message(str(way.fault))
        return exit_code_of(way.fault)
    _show_way(output, virtual.geometry, way.steps, msgspec.to_builtins(way) | asked)
    if not output.json:
        output.line(_in_words(way))
    return ExitCode.FINE


@dataclass(frozen=True, slots=True)
class _NoWay:
    """This is an address that leads nowhere: the entries on the way, and what stopped the walk."""

    steps: Sequence[Step]
    fault: TranslationFault


def _show_way(
    output: Output, geometry: Geometry, way: Sequence[Step], document: dict[str, object]
) -> None:
    if output.json:
        output.document(document)
    elif way:
        output.table(table_of(_step_columns(geometry), way))


def _way(space: AddressSpace, va: Va) -> Translation | _NoWay:
    """This walks as far as there is a way."""
    way: list[Step] = []
    try:
        for step in steps(space.memory.read, space.root, space.geometry, va):
            way.append(step)  # noqa: PERF402 - what was read before the fault counts
    except TranslationFault as fault:
        return _NoWay(way, fault)
    return space.walk(va)


def _nowhere(va: Va, way: _NoWay) -> dict[str, object]:
    """This is the document of an address that is not mapped, with the fields of one that is."""
    unknown = dict.fromkeys(("pa", "page_size", "permissions"))
    return {"va": va, **unknown, "steps": way.steps, "problem": str(way.fault)}


def _step_columns(geometry: Geometry) -> Sequence[Column[Step]]:
    return (
        Column("LEVEL", lambda step: step.level),
        Column("AT", lambda step: f"{step.address:#x}", right=True),
        Column("ENTRY", lambda step: f"{step.entry:#018x}"),
        Column("ALLOWS", lambda step: _allowed(geometry, step)),
    )


def _allowed(geometry: Geometry, step: Step) -> str:
    allowed = geometry.permissions(step.level, step.entry)
    return "nothing: not present" if allowed is None else _rights(allowed)


def _rights(allowed: Permissions) -> str:
    write = "w" if allowed.writable else "-"
    execute = "x" if allowed.executable else "-"
    return f"r{write}{execute} {'user' if allowed.user else 'kernel'}"


def _in_words(found: Translation) -> str:
    page = f"{found.page_size // _KIB} KiB page"
    return f"{found.va:#x} is {found.pa:#x} ({page}, {_rights(found.permissions)})"
