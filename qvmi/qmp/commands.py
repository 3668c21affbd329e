"""The QMP commands that qvmi uses, from typed arguments to typed answers.

References: QEMU ``qapi/run-state.json``, ``qapi/machine.json``, ``qapi/misc.json``,
``qapi/qom.json``, ``monitor/hmp-cmds.c`` (``hmp_gpa2hva``).
"""

import re
from typing import Final, TypeVar

import msgspec

from qvmi.addr import Pa
from qvmi.arch.registers import INFO_REGISTERS, Registers, parse_registers
from qvmi.errors import MemoryFault, QmpCommandFailed, QmpProtocolError
from qvmi.memory.memory_map import INFO_MTREE, MemoryBackend, MemoryMap, parse_memory_map
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor, QemuVersion, parse_version

__all__ = [
    "RunState",
    "Vcpu",
    "architecture",
    "cont",
    "gpa2hva",
    "kvm_enabled",
    "memory_backends",
    "memory_map",
    "name",
    "parse_gpa2hva",
    "qom_get",
    "registers",
    "run_state",
    "stop",
    "vcpus",
    "version",
]

_T = TypeVar("_T")

_HAS_FILE_OFFSET: Final = QemuVersion(8, 1, 0)
"""The release in which ``memory-backend-file`` got its ``offset`` (backends/hostmem-file.c)."""


class RunState(msgspec.Struct, frozen=True):
    """This is whether the vCPUs run, and QEMU's word for it, such as ``running`` or ``paused``."""

    status: str
    running: bool


class Vcpu(msgspec.Struct, frozen=True, rename="kebab"):
    """This is one virtual CPU.

    Args:
        cpu_index: its number, as in `Registers.index`.
        qom_path: where it is in QEMU's object tree.
        thread_id: the host thread that runs it (the same one for all under single-threaded TCG).
        target: the architecture, such as ``x86_64``.
    """

    cpu_index: int
    qom_path: str
    thread_id: int
    target: str


class _Kvm(msgspec.Struct, frozen=True):
    enabled: bool


class _Name(msgspec.Struct, frozen=True):
    name: str = ""


class _Target(msgspec.Struct, frozen=True):
    arch: str


class _Memdev(msgspec.Struct, frozen=True):
    size: int
    # Not told before QEMU 6.1 (share) and for a backend that is no user's object (id).
    id: str | None = None
    share: bool = False


async def run_state(monitor: Monitor) -> RunState:
    """This asks whether the machine runs."""
    return _typed("query-status", await monitor.execute("query-status"), RunState)


async def version(monitor: Monitor) -> QemuVersion:
    """This asks for QEMU's release; `Monitor.version` knows it without asking."""
    return parse_version(await monitor.execute("query-version"))


async def name(monitor: Monitor) -> str:
    """This asks for the name that ``-name`` gave; empty without one."""
    return _typed("query-name", await monitor.execute("query-name"), _Name).name


async def kvm_enabled(monitor: Monitor) -> bool:
    """This asks whether KVM runs the vCPUs."""
    return _typed("query-kvm", await monitor.execute("query-kvm"), _Kvm).enabled


async def architecture(monitor: Monitor) -> str:
    """This asks for the architecture that the machine has, such as ``x86_64``."""
    return _typed("query-target", await monitor.execute("query-target"), _Target).arch


async def vcpus(monitor: Monitor) -> tuple[Vcpu, ...]:
    """This asks for the vCPUs, without interrupting them."""
    command = "query-cpus-fast"
    return _typed(command, await monitor.execute(command), tuple[Vcpu, ...])


async def qom_get(monitor: Monitor, path: str, property_name: str) -> object:
    """This reads a property of an object in QEMU's object tree."""
    return await monitor.execute("qom-get", {"path": path, "property": property_name})


async def stop(monitor: Monitor) -> None:
    """This stops all vCPUs; when it returns, they stand still."""
    await monitor.execute("stop")


async def cont(monitor: Monitor) -> None:
    """This lets the vCPUs run on."""
    await monitor.execute("cont")


async def registers(monitor: Monitor) -> tuple[Registers, ...]:
    """This reads the registers of every vCPU, each at a moment of its own, without stopping them."""
    return parse_registers(await monitor.hmp(INFO_REGISTERS))


async def memory_backends(monitor: Monitor) -> tuple[MemoryBackend, ...]:
    """This asks which objects provide the machine's memory."""
    found = _typed("query-memdev", await monitor.execute("query-memdev"), tuple[_Memdev, ...])
    async with concurrently() as group:
        tasks = [group.create_task(_backend(monitor, each)) for each in found if each.id]
    return tuple(task.result() for task in tasks)


async def memory_map(monitor: Monitor) -> MemoryMap:
    """This asks what answers at which physical address, and what host memory is behind it."""
    async with concurrently() as group:
        # First, so that its second round trip falls into the time that QEMU takes for the other.
        backends = group.create_task(memory_backends(monitor))
        mtree = group.create_task(_mtree(monitor))
    return parse_memory_map(mtree.result(), backends.result())


async def gpa2hva(monitor: Monitor, pa: Pa) -> int:
    """This asks where in QEMU's own address space a byte of guest RAM is.

    Raises:
        MemoryFault: no RAM answers at that address.
    """
    line = f"gpa2hva {pa:#x}"
    return parse_gpa2hva(pa, await monitor.hmp(line))


_HOST_ADDRESS: Final = re.compile(
    r"Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]{1,16})\n?"
)
_NO_RAM: Final = re.compile(
    r"(?:No memory is mapped|Memory) at address 0x[0-9a-f]+( is not RAM)?\n?"
)


def parse_gpa2hva(pa: Pa, printed: str) -> int:
    """This reads the answer to ``gpa2hva``.

    Raises:
        MemoryFault: no RAM answers at that address.
        QmpProtocolError: the text is neither of QEMU's answers.
    """
    if match := _HOST_ADDRESS.fullmatch(printed):
        return int(match[1], 16)
    if _NO_RAM.fullmatch(printed):
        raise MemoryFault(pa, 1, why=printed.strip())
    raise QmpProtocolError(f"gpa2hva {pa:#x}", f"unexpected answer {printed[:200]!r}")


async def _mtree(monitor: Monitor) -> str:
    try:
        return await monitor.hmp(INFO_MTREE)
    except QmpCommandFailed:
        # Without owners (-o, QEMU 2.12) regions are joined with backends by name.
        return await monitor.hmp(INFO_MTREE.removesuffix(" -o"))


async def _backend(monitor: Monitor, device: _Memdev) -> MemoryBackend:
    path = f"/objects/{device.id}"
    async with concurrently() as group:
        asked_path = group.create_task(_optional(monitor, path, "mem-path"))
        asked_offset = group.create_task(_file_offset(monitor, path))
    mem_path, offset = asked_path.result(), asked_offset.result()
    if mem_path is None:
        type_ = _typed("qom-get type", await qom_get(monitor, path, "type"), str)
        return MemoryBackend(path, type_, device.size, device.share)
    return MemoryBackend(
        path,
        "memory-backend-file",  # no other type has a mem-path
        device.size,
        device.share,
        _typed("qom-get mem-path", mem_path, str),
        _typed("qom-get offset", offset or 0, int),
    )


async def _file_offset(monitor: Monitor, path: str) -> object:
    """This is where in its file a backend begins; None where it has no file, or cannot say.

    A refusal costs QEMU as much as an answer, a tenth of what an attach takes: those that are
    known to refuse are not asked.
    """
    if monitor.version < _HAS_FILE_OFFSET:
        return None
    return await _optional(monitor, path, "offset")


async def _optional(monitor: Monitor, path: str, property_name: str) -> object:
    try:
        return await qom_get(monitor, path, property_name)
    except QmpCommandFailed:
        return None


def _typed(command: str, value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise QmpProtocolError(command, str(error)) from error
