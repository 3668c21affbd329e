"""Attaching to a machine, from an event loop or from a plain script."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import platformdirs

from qvmi.addr import Pa, Va
from qvmi.arch.registers import Registers
from qvmi.errors import UsageError
from qvmi.machine.capture import IN_A_WALK
from qvmi.machine.completion import to_the_end
from qvmi.machine.control import Control
from qvmi.machine.dump import Dump
from qvmi.machine.facts import MachineFacts
from qvmi.machine.machine import Machine
from qvmi.machine.query import QUERY_TIMEOUT_S
from qvmi.machine.reach import reach_of
from qvmi.machine.recognition import Recognition
from qvmi.machine.ways.host_mapping import HostMaps
from qvmi.machine.ways.memory_ladder import MemorySource, open_memory
from qvmi.memory.address_space import AddressSpace
from qvmi.policy import OBSERVE, Policy
from qvmi.qmp import commands
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor
from qvmi.qmp.open import open_monitor
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.selection import Choices
from qvmi.symbols.layout import Symbols
from qvmi.symbols.profile import ProfileCache
from qvmi.view import View

if TYPE_CHECKING:
    from qvmi.machine.holding.writing import MemoryWrite, RegisterWrite
    from qvmi.machine.scanning.scan import ScanArea
    from qvmi.machine.scanning.scan_rules import ScanRules
    from qvmi.machine.scanning.sync_scan import SyncScan
    from qvmi.semantics.drgn_bridge.program import Program
    from qvmi.semantics.linux.kernel.guest_symbols import GuestSymbols
    from qvmi.semantics.volatility_bridge.table import VolatilityTable
    from qvmi.semantics.windows.guest import WindowsGuest

__all__ = ["ATTACH_TIMEOUT_S", "SyncMachine", "attach", "attach_sync", "default_profile_folder"]

ATTACH_TIMEOUT_S: Final = 3.0
"""How long QEMU may take to greet; it needs a millisecond."""

Result = TypeVar("Result")
Found = TypeVar("Found")


def default_profile_folder() -> Path:
    """This is where profiles of kernels seen before are kept, below the user's cache folder."""
    return Path(platformdirs.user_cache_dir("qvmi")) / "profiles"


@asynccontextmanager
async def attach(  # noqa: PLR0913 - each is an option of its own, and none but the first is needed
    address: str | os.PathLike[str],
    *,
    isf: Path | None = None,
    cache: Path | None = None,
    use_cache: bool = True,
    discover: bool = True,
    gdb: str | None = None,
    policy: Policy = OBSERVE,
    sources: Collection[str] | None = None,
    timeout_s: float = ATTACH_TIMEOUT_S,
) -> AsyncIterator[Machine]:
    """This attaches to a running QEMU for as long as the block lasts; the guest is not stopped.

    Args:
        address: of QEMU's QMP socket: a path, ``HOST:PORT``, or ``libvirt:DOMAIN``.
        isf: a Volatility 3 symbol file of the guest's kernel, for kernels without BTF.
        cache: folder of the profiles; the user's cache folder by default.
        use_cache: whether profiles are read and written at all.
        discover: whether to work out at once which system runs there.
        gdb: the address of QEMU's gdbstub: for breakpoints, writes and system registers, and for what
            cannot be had without stopping the guest otherwise: its memory, or where an aarch64
            kernel's page tables are. None finds or starts one, but not to attach.
        policy: what may be done to the guest. The default looks and stops it for that;
            ``OBSERVE.plus(Grant.WRITE)`` changes it, ``READ_ONLY`` does not even stop it.
        sources: the ways to the memory that may be used, of
            :class:`~qvmi.machine.ways.memory_ladder.MemorySource`; None for all. Who names the gdbstub
            here may leave out where it is.
        timeout_s: how long the connection may take.

    Raises:
        UsageError: the address has none of the forms.
        AttachError: no session, or no way to the memory; see its subclasses.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.

    A guest that is not recognised is no error here: :attr:`Machine.guest` raises then.
    """
    monitor = await open_monitor(address, timeout_s=timeout_s)
    try:
        choices = choices_of(isf, cache, use_cache=use_cache)
        machine = await _machine(monitor, choices, gdb=gdb, policy=policy, sources=sources)
    except BaseException:
        await to_the_end(monitor.close())
        raise
    try:
        if discover:
            await machine.recognise()
        yield machine
    finally:
        # Half closed, it would keep QEMU's only connection from everybody else.
        await to_the_end(machine.close())


async def _machine(
    monitor: Monitor,
    choices: Choices,
    *,
    gdb: str | None,
    policy: Policy,
    sources: Collection[str] | None,
) -> Machine:
    async with concurrently() as group:
        vcpus = group.create_task(commands.registers(monitor))
        mapping = group.create_task(commands.memory_map(monitor))
        # In the time that QEMU takes to answer.
        maps = group.create_task(asyncio.to_thread(_host_maps, monitor))
    control = Control(monitor, Recognition(choices), gdb=gdb, policy=policy)
    stub_named = gdb is not None or (sources is not None and MemorySource.GDBSTUB in sources)
    reach = reach_of(monitor, control, maps.result(), stub_named=stub_named)
    memory_map = mapping.result()
    try:
        opened = await open_memory(monitor.target, memory_map, reach, sources)
    except BaseException:
        await to_the_end(control.close())
        raise
    return Machine(monitor, memory_map, opened, control, vcpus=vcpus.result())


def _host_maps(monitor: Monitor) -> HostMaps | None:
    """This reads what QEMU has mapped; None where its process is not known."""
    pid = monitor.peer_pid()
    if pid is None or _runs_as_we_do(pid):
        return None
    maps = HostMaps(pid)
    maps.prefetch()
    return maps


def _runs_as_we_do(pid: int) -> bool:
    """This tells whether a process runs by our interpreter: a gateway before QEMU, and not QEMU."""
    try:
        return Path(f"/proc/{pid}/exe").samefile("/proc/self/exe")
    except OSError:
        return False


def choices_of(isf: Path | None, cache: Path | None, *, use_cache: bool) -> Choices:
    """This is what a user wants to be used, from the options of an attach."""
    folder = cache or default_profile_folder()
    return Choices(
        cache=ProfileCache(folder) if use_cache else None,
        symbols=None if isf is None else partial(_isf_symbols, isf),
    )


def _isf_symbols(path: Path, image: KernelImage, space: AddressSpace) -> Symbols:
    from qvmi.semantics.linux.kernel.given_symbols import (  # noqa: PLC0415 - import time, for a rare need
        symbols_from_isf,
    )

    return symbols_from_isf(path, image, space)


class SyncMachine:
    """This is a :class:`Machine` for scripts without an event loop; :func:`attach_sync` makes it.

    Breakpoints and gdb are left to :func:`attach`: who waits for a hit wants to do something else meanwhile.

    Args:
        machine: what was attached to.
        run: runs a coroutine of the machine's on its event loop and waits for it.
    """

    def __init__(
        self, machine: Machine, run: Callable[[Coroutine[Any, Any, Result]], Result]
    ) -> None:
        self._run: Callable[[Coroutine[Any, Any, Any]], Any] = run
        self.machine = machine

    @property
    def guest(self) -> LinuxGuest:
        """This is the operating system that runs in the machine; see :attr:`Machine.guest`."""
        return self.machine.guest

    @property
    def symbols(self) -> "GuestSymbols":
        """These are the names and types of the guest; see :attr:`Machine.symbols`."""
        return self.machine.symbols

    @property
    def kernel_space(self) -> AddressSpace:
        """This is the kernel's address space; see :attr:`Machine.kernel_space`."""
        return self.machine.kernel_space

    def user_space(self, process: Process) -> AddressSpace:
        """This is the address space of a process; see `Machine.user_space`."""
        return self.machine.user_space(process)

    def scan(
        self,
        rules: "ScanRules | str | Path",
        *,
        area: "ScanArea | None" = None,
        pid: int | None = None,
        hits_per_rule: int | None = None,
    ) -> "SyncScan":
        """This is a scan of the guest's memory: ``for hit in machine.scan(…)``; see `Machine.scan`."""
        from qvmi.machine.scanning.sync_scan import SyncScan  # noqa: PLC0415 - as Machine does

        scan = self.machine.scan(rules, area=area, pid=pid, hits_per_rule=hits_per_rule)
        return SyncScan(scan, self._run)

    def drgn(self) -> "Program":
        """This is a drgn program on the guest; see `Machine.drgn`."""
        return self.machine.drgn()

    def windows(self, isf: Path | None = None) -> "WindowsGuest":
        """This is the Windows that runs in the machine; see `Machine.windows`."""
        return self.machine.windows(isf)

    def registers(self) -> tuple[Registers, ...]:
        """This reads the registers of all vCPUs without stopping the guest."""
        vcpus: tuple[Registers, ...] = self._run(self.machine.registers())
        return vcpus

    def run_state(self) -> commands.RunState:
        """This asks QEMU whether the vCPUs run; see `Machine.run_state`."""
        state: commands.RunState = self._run(self.machine.run_state())
        return state

    def facts(self) -> MachineFacts:
        """This asks QEMU for what it says of the machine."""
        facts: MachineFacts = self._run(self.machine.facts())
        return facts

    @contextmanager
    def paused(self) -> Iterator[View]:
        """This keeps the guest from running for as long as the block lasts; see `Machine.paused`."""
        pause = self.machine.paused()
        view: View = self._run(pause.__aenter__())
        try:
            yield view
        except BaseException as error:
            self._run(pause.__aexit__(type(error), error, error.__traceback__))
            raise
        self._run(pause.__aexit__(None, None, None))

    def query(
        self, look: Callable[[LinuxGuest], Found], *, timeout_s: float = QUERY_TIMEOUT_S
    ) -> Found:
        """This looks at the guest whichever way its memory is read; see `Machine.query`."""
        found: Found = self._run(self.machine.query(look, timeout_s=timeout_s))
        return found

    def capture(self, walk: Callable[[LinuxGuest], Found]) -> Found:
        """This does a walk that sees the guest at one moment; see `Machine.capture`."""
        found: Found = self._run(self.machine.capture(walk))
        return found

    def volatility(self, plugin: str, /, **options: object) -> "VolatilityTable":
        """This asks a plugin of Volatility 3's; see `Machine.volatility`."""
        table: VolatilityTable = self._run(self.machine.volatility(plugin, **options))
        return table

    def dump(self, path: Path, *, live: bool = False) -> Dump:
        """This writes the guest's memory to an ELF core file; see `Machine.dump`."""
        dump: Dump = self._run(self.machine.dump(path, live=live))
        return dump

    def write_physical(self, pa: Pa, data: bytes) -> "MemoryWrite":
        """This writes guest physical memory; see `Machine.write_physical`."""
        written: MemoryWrite = self._run(self.machine.write_physical(pa, data))
        return written

    def write_virtual(
        self, va: Va, data: bytes, *, process: Process | None = None, even_shared: bool = False
    ) -> "MemoryWrite":
        """This writes memory of the kernel or of a process; see `Machine.write_virtual`."""
        writing = self.machine.write_virtual(va, data, process=process, even_shared=even_shared)
        written: MemoryWrite = self._run(writing)
        return written

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> "RegisterWrite":
        """This writes registers of a vCPU; see `Machine.write_registers`."""
        written: RegisterWrite = self._run(self.machine.write_registers(vcpu, values))
        return written

    def refresh(self) -> None:
        """This looks again which system runs, as after a reset."""
        self._run(self.machine.refresh())


@contextmanager
def attach_sync(  # noqa: PLR0913 - the options of attach
    address: str | os.PathLike[str],
    *,
    isf: Path | None = None,
    cache: Path | None = None,
    use_cache: bool = True,
    gdb: str | None = None,
    policy: Policy = OBSERVE,
    sources: Collection[str] | None = None,
    timeout_s: float = ATTACH_TIMEOUT_S,
) -> Iterator[SyncMachine]:
    """This is :func:`attach` for scripts: the event loop runs in a thread of its own.

    Raises:
        AttachError: as :func:`attach`.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="qvmi event loop", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
        if IN_A_WALK.get() or threading.current_thread() is thread:
            coroutine.close()
            raise UsageError(
                "what is given to capture() must not ask its machine, which waits for it: it is"
                " given the guest, and what it asks there is of one moment"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    attachment = attach(
        address,
        isf=isf,
        cache=cache,
        use_cache=use_cache,
        gdb=gdb,
        policy=policy,
        sources=sources,
        timeout_s=timeout_s,
    )
    try:
        machine = run(attachment.__aenter__())
        try:
            yield SyncMachine(machine, run)
        finally:
            run(attachment.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
