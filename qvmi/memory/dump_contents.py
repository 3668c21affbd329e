"""What the head of a dump says: where which piece of guest memory lies in the file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.errors import NotADump
from qvmi.memory.input_file import InputFile
from qvmi.memory.mapped_ram import RamFile

__all__ = ["MAX_ADDRESS", "DumpContents", "checked_piece", "without_overlaps"]

MAX_ADDRESS: Final = 1 << 52
"""The first address beyond what any x86-64 or aarch64 processor can name."""
_MAX_PIECES: Final = 1024
"""A machine's RAM lies in a handful of pieces, one of many nodes in some hundred."""


@dataclass(frozen=True, slots=True)
class DumpContents:
    """This is what a dump's file holds.

    Args:
        form: what kind of file it is, for people.
        pieces: of guest memory, in rising order, without overlap.
        vmcoreinfo: texts of the kernel's notes for crash dumps that the file's head carries.
    """

    form: str
    pieces: tuple[RamFile, ...]
    vmcoreinfo: tuple[bytes, ...] = ()


def checked_piece(file: InputFile, start: int, size: int, offset: int) -> RamFile:
    """This is one piece of memory, which the file must hold whole.

    Raises:
        NotADump: there are no such addresses, or the file ends before.
    """
    if not 0 <= start < start + size <= MAX_ADDRESS:
        raise file.refusal(f"tells of {size} bytes of memory at {start:#x}, which cannot be")
    if not 0 <= offset <= offset + size <= file.size:
        raise file.refusal(
            f"is cut off: the memory at {start:#x} lies in it up to {offset + size:#x},"
            f" and it has {file.size:#x} bytes"
        )
    return RamFile(PaRange(Pa(start), Pa(start + size)), file.link, offset)


def without_overlaps(file: InputFile, pieces: Iterable[RamFile]) -> tuple[RamFile, ...]:
    """This gives each address one place in the file, and joins what goes on in it.

    A dump may tell of one page several times, once for each virtual address; the first one counts.

    Raises:
        NotADump: there is no piece, or there are too many.
    """
    result = tuple(_joined(_clipped(sorted(set(pieces), key=_place))))
    if not result:
        raise file.refusal("holds no memory")
    if len(result) > _MAX_PIECES:
        raise _scattered(file, len(result))
    return result


def _place(piece: RamFile) -> tuple[Pa, int]:
    return piece.range.start, piece.offset


def _clipped(by_address: Iterable[RamFile]) -> Iterator[RamFile]:
    """This leaves out of each piece what the ones before it have."""
    covered = Pa(0)
    for piece in by_address:
        start, end = max(piece.range.start, covered), piece.range.end
        if start < end:
            offset = piece.offset + start - piece.range.start
            yield RamFile(PaRange(start, end), piece.path, offset)
            covered = end


def _joined(by_address: Iterable[RamFile]) -> Iterator[RamFile]:
    pending: RamFile | None = None
    for piece in by_address:
        if pending is not None:
            size = pending.range.size
            if pending.range.end == piece.range.start and pending.offset + size == piece.offset:
                whole = PaRange(pending.range.start, piece.range.end)
                pending = RamFile(whole, piece.path, pending.offset)
                continue
            yield pending
        pending = piece
    if pending is not None:
        yield pending


def _scattered(file: InputFile, count: int) -> NotADump:
    return file.refusal(
        f"has memory in {count} pieces, more than the {_MAX_PIECES}"
        " that are supported; QEMU writes few with paging=off"
    )
