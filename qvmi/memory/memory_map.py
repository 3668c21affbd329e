"""Where the guest's memory lies in its physical address space, and what backs each piece of it.

References: QEMU ``system/memory.c`` (``mtree_print_flatview``, ``mtree_print_mr_owner``,
``memory_region_type``) and ``backends/hostmem.c``, 7.2 to 10.1.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.errors import QmpProtocolError

__all__ = [
    "INFO_MTREE",
    "MemoryBackend",
    "MemoryMap",
    "MemoryRegion",
    "RegionKind",
    "parse_memory_map",
]

INFO_MTREE: Final = "info mtree -f -o"
"""The monitor line whose answer `parse_memory_map` understands; without ``-o`` it does too."""

_MAX_TEXT: Final = 10 << 20  # characters; as much as one QMP message may carry
_MAX_RANGES: Final = 1 << 16  # a guest moves BARs and PAM ranges: dozens; 256 dimms: hundreds


class RegionKind(StrEnum):
    """This is what happens when the guest reads and writes a piece of memory."""

    RAM = "ram"
    """Reads and writes reach host memory."""
    ROM = "rom"
    """Reads reach host memory, writes do not: firmware, and RAM that the chipset write-protects."""
    ROM_DEVICE = "romd"
    """Reads reach host memory, writes reach a device: flash."""
    RAM_DEVICE = "ramd"
    """Reads and writes reach memory of a passed-through device; looking may change its state."""


@dataclass(frozen=True, slots=True)
class MemoryBackend:
    """This is a QEMU object that provides host memory for guest RAM.

    Args:
        path: its QOM path, such as ``/objects/pc.ram``.
        type: its QOM type, such as ``memory-backend-file``.
        size: in bytes.
        share: guest writes reach the file (or memfd), so others can see them by mapping it.
        mem_path: the file, of a ``memory-backend-file``; else None. It may be a folder, in which
            QEMU has made a nameless file.
        file_offset: where in the file the memory begins, in bytes.
    """

    path: str
    type: str
    size: int
    share: bool
    mem_path: str | None = None
    file_offset: int = 0

    @property
    def name(self) -> str:
        """This is the id that ``-object`` gave it."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """This is the half-open range [start, end) of physical addresses that one memory answers.

    Args:
        start: first guest physical address.
        end: first guest physical address behind it.
        kind: what reads and writes do.
        name: QEMU's name of the memory region; for people, not for decisions.
        offset: offset of `start` in the memory region (so in its backend), in bytes.
        owner: QOM path of what owns the memory, ``id=NAME`` of a device that was given an id, or
            None where QEMU does not tell.
        device: the owner is a device: video memory or an option ROM in a BAR, not system RAM.
        nonvolatile: it is persistent memory (an nvdimm).
        backend: what provides the host memory, None for memory that is no backend's.
    """

    start: Pa
    end: Pa
    kind: RegionKind
    name: str
    offset: int
    owner: str | None = None
    device: bool = False
    nonvolatile: bool = False
    backend: MemoryBackend | None = None

    @property
    def size(self) -> int:
        """This is the length in bytes."""
        return self.end - self.start

    @property
    def file_offset(self) -> int:
        """This is the offset of `start` in the backend's file or memfd, in bytes."""
        return self.offset + (self.backend.file_offset if self.backend else 0)


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """This is the memory that the guest's CPUs see, outside of system management mode.

    Args:
        regions: everything that answers reads with memory, in rising order, without overlap.
    """

    regions: tuple[MemoryRegion, ...]

    def __post_init__(self) -> None:
        for below, above in pairwise(self.regions):
            if below.end > above.start:
                raise _malformed(f"{below.name} and {above.name} overlap at {above.start:#x}")

    @property
    def ram(self) -> tuple[MemoryRegion, ...]:
        """These are the pieces of system RAM, persistent memory included, devices' RAM not."""
        return tuple(r for r in self.regions if r.kind is RegionKind.RAM and not r.device)

    @property
    def ram_ranges(self) -> tuple[PaRange, ...]:
        """These are the address ranges of system RAM, with pieces that touch joined."""
        return tuple(_joined(self.ram))

    @property
    def backends(self) -> tuple[MemoryBackend, ...]:
        """These are the backends of the regions, each once, in the order of addresses."""
        return tuple(dict.fromkeys(r.backend for r in self.regions if r.backend is not None))

    def region_at(self, pa: Pa) -> MemoryRegion | None:
        """This is the region that answers at an address; None where no memory does."""
        index = bisect_right(self.regions, pa, key=lambda region: region.start) - 1
        if index >= 0 and pa < self.regions[index].end:
            return self.regions[index]
        return None


def parse_memory_map(mtree: str, backends: Iterable[MemoryBackend] = ()) -> MemoryMap:
    """This reads the answer to ``info mtree -f -o`` and joins it with the memory backends.

    Without ``-o`` the text names no owners; a region is then joined by its name, which QEMU makes
    from the backend's id.

    Raises:
        QmpProtocolError: there is no flat view of the system's memory, or a line of it is malformed.
    """
    if len(mtree) > _MAX_TEXT:
        raise _malformed(f"{len(mtree)} characters, more than {_MAX_TEXT}")
    lines = _system_view(mtree)
    if len(lines) > _MAX_RANGES:
        raise _malformed(f"{len(lines)} ranges, more than {_MAX_RANGES}")
    by_path = {backend.path: backend for backend in backends}
    parsed = (_parse_range(line, by_path) for line in lines)
    return MemoryMap(tuple(region for region in parsed if region is not None))


_SYSTEM_AS: Final = re.compile(r'^ AS "memory", root: system\s*$', re.MULTILINE)
_RANGE: Final = re.compile(
    r"  (?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16})"
    r" \(prio -?[0-9]+, (?:(?P<nonvolatile>nv-)?(?P<kind>ram|rom|romd|ramd)|i/o|container)\):"
    r" (?P<name>.*?)(?: @(?P<offset>[0-9a-f]{16}))?"
    # `owner:{obj path=…}`, then, as without `-o`, the accelerator's name once for each AS that it
    # serves; QEMU has one accelerator that tells.
    r"(?: orphan|(?: (?:owner|parent):\{(?P<owner>[^}]*)\})(?: parent:\{[^}]*\})?)?(?: KVM)*"
)


def _system_view(mtree: str) -> Sequence[str]:
    """These are the lines of the ranges in the flat view that holds the AS ``memory``.

    QEMU prints a flat view once, with all address spaces that share it, and in no fixed order.
    """
    for view in mtree.replace("\r\n", "\n").split("FlatView #")[1:]:
        if _SYSTEM_AS.search(view):
            # What else begins with two blanks, `No rendered FlatView`, is no range either.
            _, found, ranges = view.partition("\n Root memory region: system\n")
            if not found:
                break
            return [line for line in ranges.split("\n") if line]
    raise _malformed(f'no flat view of the address space "memory": {mtree[:80]!r}')


def _parse_range(line: str, backends: Mapping[str, MemoryBackend]) -> MemoryRegion | None:
    match = _RANGE.fullmatch(line)
    if match is None:
        raise _malformed(f"malformed range {line[:200]!r}")
    start, end = int(match["first"], 16), int(match["last"], 16) + 1
    if end <= start:
        raise _malformed(f"range ends before it begins: {line[:200]!r}")
    if match["kind"] is None:
        return None
    sort, _, place = (match["owner"] or "").partition(" ")
    owner = place.removeprefix("path=") or None
    name = match["name"]
    return MemoryRegion(
        Pa(start),
        Pa(end),
        RegionKind(match["kind"]),
        name,
        int(match["offset"] or "0", 16),
        owner=owner,
        device=sort == "dev",
        nonvolatile=match["nonvolatile"] is not None,
        backend=_backend(owner, name, backends),
    )


def _backend(
    owner: str | None, name: str, backends: Mapping[str, MemoryBackend]
) -> MemoryBackend | None:
    if owner is not None:
        return backends.get(owner)
    # Machine types before 4.0 name the region by the backend's whole path.
    return backends.get(name) or backends.get(f"/objects/{name}")


def _joined(regions: Iterable[MemoryRegion]) -> Iterator[PaRange]:
    pending: PaRange | None = None
    for region in regions:
        if pending is not None and pending.end == region.start:
            pending = PaRange(pending.start, region.end)
            continue
        if pending is not None:
            yield pending
        pending = PaRange(region.start, region.end)
    if pending is not None:
        yield pending


def _malformed(problem: str) -> QmpProtocolError:
    return QmpProtocolError(INFO_MTREE, problem)
