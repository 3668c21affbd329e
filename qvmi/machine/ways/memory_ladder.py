"""The ways to a guest's memory, tried from the best to the last resort, each with what became of it.

Direct ways come first, the fastest of them first. Of the others those come first for which the guest
goes on to run; the gdbstub, for which it stands still, is used only where the user has named it
(docs/adr/0016-ways-to-memory.md).
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault, MemoryUnreachable, QvmiError
from qvmi.machine.ways.host_mapping import HostMapping, HostMaps, opened_file
from qvmi.machine.ways.process_access import how_to_read
from qvmi.machine.ways.remote_memory import Conversation, RemoteMemory
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.memory.memory_map import MemoryMap, MemoryRegion, RegionKind
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.process_memory import HostRun, ProcessMemory

__all__ = ["HostAddress", "MemoryAttempt", "MemorySource", "OpenedMemory", "Reach", "open_memory"]

HostAddress = Callable[[Pa], Awaitable[int]]
"""Asks QEMU where in its own process the byte at a physical address is; raises QvmiError."""

_FILE_BACKEND: Final = "memory-backend-file"
_HOW_TO_SHARE: Final = (
    "start QEMU with -object memory-backend-memfd,id=ram0,size=…,share=on"
    " -machine …,memory-backend=ram0"
)
_HOW_TO_KNOW_PROCESS: Final = "connect to a Unix socket on QEMU's own host"

_logger = logging.getLogger(__name__)


class MemorySource(StrEnum):
    """This is a way to the memory."""

    FILE = "shared RAM file"
    MAPPING = "QEMU's shared mapping"
    PROCESS = "QEMU's process memory"
    PMEMSAVE = "pmemsave"
    GDBSTUB = "gdbstub"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class MemoryAttempt:
    """This is one way to the memory, and what became of it.

    Args:
        source: the way, one of :class:`MemorySource`.
        used: whether the guest is read this way.
        reason: why it is used, or why it cannot be, with what would help.
    """

    source: str
    used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class OpenedMemory:
    """This is the best way there was, with all that were tried."""

    memory: PhysicalMemory
    attempts: tuple[MemoryAttempt, ...]

    @property
    def remote(self) -> RemoteMemory | None:
        """This is the memory where it has to be asked for; None where it is direct."""
        return self.memory if isinstance(self.memory, RemoteMemory) else None


@dataclass(frozen=True, slots=True)
class Reach:
    """This is what there is to reach the memory by.

    Args:
        maps: of QEMU's process on this host; None where that is not known, as over TCP.
        host_address: asks QEMU where it has a byte of the guest.
        saved: makes conversations that have QEMU save memory to a file; each may do or not.
        printed: makes the one that has QEMU print it.
        stub: makes the one with the gdbstub.
        stub_named: whether the user has named the gdbstub, knowing that it stops the guest.
        may_stop: whether the session's policy lets it stop the guest.
    """

    maps: HostMaps | None
    host_address: HostAddress
    saved: Callable[[], Awaitable[Iterator[Conversation]]]
    printed: Callable[[], Conversation]
    stub: Callable[[], Conversation]
    stub_named: bool
    may_stop: bool = True


class _Unusable(Exception):
    """This way does not lead to the memory; the message says why, and what would help."""


async def open_memory(
    target: str, memory_map: MemoryMap, reach: Reach, sources: Collection[str] | None = None
) -> OpenedMemory:
    """This opens the guest's memory in the best way there is.

    Args:
        target: the machine's address, for errors.
        memory_map: where the guest's RAM lies.
        reach: what there is to reach it by.
        sources: those of :class:`MemorySource` that may be used; None for all.

    Raises:
        MemoryUnreachable: no way leads there.
    """
    regions = _system_memory(memory_map)
    if not regions:
        raise MemoryUnreachable(target, ["the machine has no RAM with a memory backend"])
    attempts: list[MemoryAttempt] = []
    for source, way in _WAYS.items():
        if sources is not None and source not in sources:
            continue
        try:
            memory = await way(regions, reach)
        except (_Unusable, QvmiError) as error:
            attempts.append(MemoryAttempt(source, used=False, reason=str(error)))
            continue
        attempts.append(MemoryAttempt(source, used=True, reason=memory.description))
        return OpenedMemory(memory, tuple(attempts))
    raise MemoryUnreachable(target, [f"{one.source}: {one.reason}" for one in attempts])


def _system_memory(memory_map: MemoryMap) -> tuple[MemoryRegion, ...]:
    """These are the regions that hold the guest's own memory.

    Parts of RAM that the chipset write-protects count as ROM, but are RAM still.
    """
    return tuple(
        region
        for region in memory_map.regions
        if region.backend is not None and region.kind in {RegionKind.RAM, RegionKind.ROM}
    )


async def _by_file(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This maps the files that QEMU was given for the RAM, if it shares them."""
    files: list[RamFile] = []
    checked: dict[str, Path] = {}
    for region in regions:
        backend = region.backend
        if backend is None or backend.type != _FILE_BACKEND or backend.mem_path is None:
            kind = backend.type if backend else "none"
            raise _Unusable(f"{region.name} is no file ({kind}); {_HOW_TO_SHARE}")
        if not backend.share:
            raise _Unusable(f"{region.name} is a private copy of its file (share=off)")
        if backend.path not in checked:
            checked[backend.path] = _checked_path(Path(backend.mem_path), region, reach.maps)
        path = checked[backend.path]
        files.append(RamFile(PaRange(region.start, region.end), path, region.file_offset))
    return _mapped(files)


def _checked_path(path: Path, region: MemoryRegion, maps: HostMaps | None) -> Path:
    """This checks that the file is the one that QEMU has mapped, where that can be seen."""
    try:
        if not path.is_file():
            raise _Unusable(f"{path} ({region.name}) is no file on this host")
    except OSError as error:
        raise _Unusable(f"{path} ({region.name}): {error.strerror}") from error
    try:
        shared = maps is None or maps.share_file(path, region.file_offset)
    except OSError:
        shared = True  # QEMU belongs to somebody else; the file alone was let to us
    if not shared:
        raise _Unusable(f"{path} is not the file that QEMU has mapped for {region.name}")
    return path


async def _by_mapping(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This maps what QEMU has mapped shared, such as a memfd, through its /proc files."""
    known = _known(reach.maps)
    mappings = _mappings_of(known)
    files: list[RamFile] = []
    for region in regions:
        for run in _host_runs(region, await reach.host_address(region.start), mappings):
            mapping = run.mapping
            if not mapping.shared or not mapping.inode:
                raise _Unusable(f"{region.name} is private to QEMU; {_HOW_TO_SHARE}")
            path = opened_file(known.pid, mapping)
            if path is None:
                raise _Unusable(f"the file behind {region.name} cannot be opened again")
            offset = mapping.offset + run.host_address - mapping.start
            files.append(RamFile(run.range, path, offset))
    return _mapped(files)


async def _by_process(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This reads QEMU's own memory."""
    known = _known(reach.maps)
    runs = [
        HostRun(PaRange(region.start, region.end), await reach.host_address(region.start))
        for region in regions
    ]
    try:
        memory = ProcessMemory(known.pid, runs)
        memory.read(regions[0].start, 1)
    except MemoryFault as fault:
        raise _Unusable(f"{fault}; {how_to_read(known.pid)}") from fault
    return memory


async def _by_pmemsave(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This lets QEMU save it to a file, chunk by chunk, in the first folder that both can use."""
    problem = "no folder to save to: make /dev/shm or TMPDIR writable"
    for conversation in await reach.saved():
        try:
            return await _asked(regions, conversation)
        except QvmiError as error:
            conversation.close()
            problem = str(error)
        except BaseException:
            conversation.close()
            raise
    raise _Unusable(problem)


async def _by_stub(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This reads through the gdbstub, where the user knows that the guest stands still for it."""
    if not reach.stub_named:
        raise _Unusable("it would stop the guest for each look: name it with --gdb ADDR to use it")
    if not reach.may_stop:
        raise _Unusable("it would stop the guest, for which the session has not the grant `pause`")
    try:
        return await _asked(regions, reach.stub())
    except QvmiError as error:
        _logger.warning("memory is not read by the gdbstub: %s", error)
        raise


async def _by_monitor(regions: Sequence[MemoryRegion], reach: Reach) -> PhysicalMemory:
    """This lets QEMU print it."""
    return await _asked(regions, reach.printed())


async def _asked(regions: Sequence[MemoryRegion], conversation: Conversation) -> RemoteMemory:
    """This makes a memory of a conversation, once that has told a page of it."""
    page = min(PAGE_SIZE, regions[0].end - regions[0].start)
    try:
        data = await conversation.fetch(regions[0].start, page)
    finally:
        await conversation.let_go()
    if len(data) != page:
        raise _Unusable(f"{conversation.description}: {len(data)} bytes came instead of {page}")
    return RemoteMemory([PaRange(one.start, one.end) for one in regions], conversation)


_WAYS: Final[
    dict[MemorySource, Callable[[Sequence[MemoryRegion], Reach], Awaitable[PhysicalMemory]]]
] = {
    MemorySource.FILE: _by_file,
    MemorySource.MAPPING: _by_mapping,
    MemorySource.PROCESS: _by_process,
    MemorySource.PMEMSAVE: _by_pmemsave,
    MemorySource.GDBSTUB: _by_stub,
    MemorySource.MONITOR: _by_monitor,
}
"""All ways, the best first."""


@dataclass(frozen=True, slots=True)
class _Run:
    """This is a part of a region that one mapping of QEMU's holds."""

    range: PaRange
    host_address: int
    mapping: HostMapping


def _host_runs(
    region: MemoryRegion, host_address: int, mappings: Sequence[HostMapping]
) -> list[_Run]:
    """This cuts a region at the borders of QEMU's mappings; policies split them."""
    runs: list[_Run] = []
    start, here = region.start, host_address
    for mapping in mappings:
        if mapping.start <= here < mapping.end and start < region.end:
            size = min(mapping.end - here, region.end - start)
            runs.append(_Run(PaRange(start, Pa(start + size)), here, mapping))
            start, here = Pa(start + size), here + size
    if start < region.end:
        raise _Unusable(f"QEMU has {region.name} at {here:#x}, where its maps show nothing")
    return runs


def _mapped(files: Sequence[RamFile]) -> MappedRam:
    try:
        return MappedRam(files)
    except MemoryFault as fault:
        raise _Unusable(str(fault)) from fault


def _known(maps: HostMaps | None) -> HostMaps:
    if maps is None:
        raise _Unusable(f"QEMU's process is not known: {_HOW_TO_KNOW_PROCESS}")
    return maps


def _mappings_of(maps: HostMaps) -> tuple[HostMapping, ...]:
    try:
        return maps.mappings()
    except OSError as error:
        why = f"/proc/{maps.pid}/maps: {error.strerror}; {how_to_read(maps.pid)}"
        raise _Unusable(why) from error
