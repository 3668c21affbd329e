"""A guest whose kernel is tampered with from outside while it stands still, and what its /proc says."""

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import qvmi
from qvmi.addr import Va
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import field_offset
from tests.guests.lab import Guest, GuestConfig
from tests.guests.tampering import GuestRam, guest_ram

__all__ = [
    "EVERY",
    "HIDDEN_MODULE",
    "NOBODYS",
    "X86_64",
    "KnownSymbols",
    "Tampered",
    "kernel_symbols",
    "tampered_kernel",
]

KnownSymbols = dict[GuestConfig, dict[str, int]]
"""Where the symbols of guests lie that were restored from one saved state."""

_POINTER: Final = struct.Struct("<Q")
_SYMBOLS: Final = (
    *("sys_call_table", "tcp4_seq_ops", "__start___jump_table", "x64_sys_call", "vfs_read"),
    *("netdev_chain", "init_net", "__tracepoint_sched_switch", "ftrace_ops_list", "kprobe_table"),
    *("security_hook_heads", "static_calls_table", "poweroff_cmd", "__this_module", "veth_open"),
    *("modprobe_path", "core_pattern", "idt_table", "ftrace_call"),
    *(f"__x64_sys_{name}" for name in ("read", "write", "execve", "ni_syscall")),
    *(f"__arm64_sys_{name}" for name in ("read", "write", "execve", "ni_syscall")),
)
X86_64: Final = ("6.1", "7.x")
EVERY: Final = (*X86_64, "6.12-arm64")
"""The kernels that are tampered with."""
HIDDEN_MODULE: Final = "ifb"
"""It is loaded for the tests, to be hidden."""
NOBODYS: Final = 0xFFFFFFFFFEDC0000
"""An address of the kernel's half at which nothing is mapped."""


@dataclass(frozen=True, slots=True)
class Tampered:
    """This is a guest that stands still, its memory to write to, and who looks at it.

    Attributes:
        symbols: addresses as the guest's own /proc/kallsyms tells them.
        linux: the guest as qvmi understands it.
        ram: its RAM.
    """

    guest: Guest
    symbols: Mapping[str, int]
    linux: LinuxGuest
    ram: GuestRam

    @property
    def memory(self) -> PhysicalMemory:
        """This is its memory as a codepack is given it."""
        return self.linux.view.memory

    def look(self, pack: Codepack) -> list[Finding]:
        """This is what a codepack finds in one look; it must not have missed anything."""
        observed = ObservedGuest(self.linux, pack.name)
        given = pack.inspect(observed, self.memory)
        found = [one for one in given if isinstance(one, Finding)]
        assert not observed.gap_count, observed.gaps
        return found

    def read(self, va: int, size: int) -> bytes:
        """This reads memory of the kernel."""
        return self.linux.kernel.space.read(Va(va), size)

    def pointer(self, va: int) -> int:
        """This reads an address out of memory of the kernel."""
        value: int = _POINTER.unpack(self.read(va, _POINTER.size))[0]
        return value

    @contextmanager
    def unlinked(self, *entries: int) -> Iterator[None]:
        """This takes entries out of their lists, each ``list_head``, for the length of the block."""
        with ExitStack() as stack:
            for entry in entries:
                following, before = self.pointer(entry), self.pointer(entry + 8)
                stack.enter_context(self.pointing((before, following), (following + 8, before)))
            yield

    def offset(self, struct_name: str, member: str) -> int:
        """This is where a member lies."""
        return field_offset(self.linux.kernel.symbols, struct_name, member)

    def room(self) -> int:
        """This is memory that is no part of the kernel, by the address that the kernel has all RAM at.

        It is the end of a process's stack, where it has its environment.
        """
        process = next(row for row in self.linux.processes() if row.name == "nobody")
        stack = next(row for row in self.linux.mappings(process) if row.name == "[stack]")
        pa = self.linux.user_space(process).translate(Va(stack.end - 4096))
        kernel = self.linux.kernel
        runs = (run for run in kernel.space.linear if run.start != kernel.image.start)
        return next(
            run.start + pa - run.pa for run in runs if 0 <= pa - run.pa < run.end - run.start
        )

    @contextmanager
    def altered(self, va: int, data: bytes) -> Iterator[None]:
        """This puts bytes there, within a page, for the length of the block."""
        with self.ram.altered(self.linux.kernel.space.translate(Va(va)), data):
            yield

    @contextmanager
    def pointing(self, *pairs: tuple[int, int]) -> Iterator[None]:
        """This puts addresses into places for the length of the block."""
        with ExitStack() as stack:
            for place, target in pairs:
                stack.enter_context(self.altered(place, _POINTER.pack(target)))
            yield


def kernel_symbols(guest: Guest, known: KnownSymbols) -> dict[str, int]:
    """This loads the module to hide, and asks the guest where the symbols lie.

    Args:
        guest: which runs.
        known: what was asked before: guests of one saved state have all in the same places, but for the
            module that is loaded now.
    """
    guest.ask(f"load {HIDDEN_MODULE}")
    if guest.config not in known:
        known[guest.config] = _asked(guest)
    section = f"/sys/module/{HIDDEN_MODULE}/sections/.gnu.linkonce.this_module"
    own = {f"{HIDDEN_MODULE}:__this_module": int(guest.run(f"cat {section}"), 16)}
    return known[guest.config] | own


def _asked(guest: Guest) -> dict[str, int]:
    pattern = "\\|".join(_SYMBOLS)
    said = guest.run(f"grep -w '{pattern}' /proc/kallsyms").decode()
    found = re.findall(r"^([0-9a-f]+) \w (\w+)(?:\t\[(\w+)\])?$", said, re.MULTILINE)
    return {
        f"{module}:{name}" if name == "__this_module" else name: int(digits, 16)
        for digits, name, module in reversed(found)
    }


@contextmanager
def tampered_kernel(guest: Guest, profiles: Path, known: KnownSymbols) -> Iterator[Tampered]:
    """This stops a guest, after it has told where its symbols lie, until the block ends."""
    symbols = kernel_symbols(guest, known)
    guest.monitor.execute("stop")
    try:
        with guest_ram(guest) as ram, qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
            linux = machine.guest
            assert isinstance(linux, LinuxGuest)
            assert not _is_mapped(linux, NOBODYS)
            yield Tampered(guest, symbols, linux, ram)
    finally:
        guest.monitor.execute("cont")


def _is_mapped(linux: LinuxGuest, va: int) -> bool:
    try:
        linux.kernel.space.translate(Va(va))
    except MemoryFault:
        return False
    return True
