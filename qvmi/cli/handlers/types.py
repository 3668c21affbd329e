"""The command that shows how a type of the kernel is laid out: ``type``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.type_layout import Constant, Hole, MemberLayout, TypeLayout

__all__ = ["type_layout"]

Found = TypeVar("Found")

_INDENT: Final = "  "


class Line(msgspec.Struct, frozen=True):
    """This is one line of a table of members.

    Args:
        member: that it shows, or the bytes that are no member's.
        depth: how many anonymous structs and unions it is within.
    """

    member: MemberLayout | Hole
    depth: int = 0


class Asked(Protocol):
    """This is what the command needs of a machine."""

    async def query(self, look: Callable[[LinuxGuest], Found]) -> Found:
        """This looks at the system that runs in it."""
        ...


async def type_layout(machine: Asked, output: Output, *, name: str) -> ExitCode:
    """This shows a struct, union, enum or typedef.

    Raises:
        LayoutNotFound: there is none of the name.
    """
    layout = await machine.query(lambda guest: guest.symbols.type(name))
    if output.json:
        document: dict[str, object] = msgspec.to_builtins(layout)
        output.document(document | {"holes": msgspec.to_builtins(layout.holes)})
        return ExitCode.FINE
    output.line(_title(layout))
    if layout.members:
        output.table(table_of(_MEMBER, tuple(_lines(layout))))
    if layout.constants:
        output.table(table_of(_CONSTANT, layout.constants))
    return ExitCode.FINE


def _title(layout: TypeLayout) -> str:
    stands_for = f" = {layout.type}" if layout.type else ""
    origin = f" [{layout.module or layout.source}]" if layout.module or layout.source else ""
    return f"{layout.kind.value} {layout.name}{stands_for}, {layout.size} bytes{origin}"


def _lines(layout: TypeLayout) -> Iterator[Line]:
    holes = list(layout.holes)
    for member in layout.members:
        while holes and holes[0].offset < member.offset:
            yield Line(holes.pop(0))
        yield from _of_member(member, 0)
    yield from map(Line, holes)


def _of_member(member: MemberLayout, depth: int) -> Iterator[Line]:
    yield Line(member, depth)
    for inner in member.members:
        yield from _of_member(inner, depth + 1)


def _offset(line: Line) -> str:
    member = line.member
    if isinstance(member, Hole) or not member.bit_size:
        return str(member.offset)
    return f"{member.offset}:{member.bit_offset}"


def _size(line: Line) -> str:
    member = line.member
    if isinstance(member, MemberLayout) and member.bit_size:
        return f"{member.bit_size} bits"
    return str(member.size)


def _type(line: Line) -> str:
    what = "(hole)" if isinstance(line.member, Hole) else line.member.type
    return _INDENT * line.depth + what


def _name(line: Line) -> str:
    return "-" if isinstance(line.member, Hole) else line.member.name or "-"


_MEMBER: Final[Sequence[Column[Line]]] = (
    Column("OFFSET", _offset, right=True),
    Column("SIZE", _size, right=True),
    Column("TYPE", _type),
    Column("NAME", _name),
)
_CONSTANT: Final[Sequence[Column[Constant]]] = (
    Column("VALUE", lambda constant: str(constant.value), right=True),
    Column("NAME", lambda constant: constant.name),
)
