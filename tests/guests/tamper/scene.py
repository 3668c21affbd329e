"""A guest to tamper with, while it runs or while it stands still, and a session that looks at it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Process, TaskView
from qvmi.semantics.linux.guest import LinuxGuest
from tests.guests.kernel_packs.tampered_kernel import KnownSymbols, Tampered, kernel_symbols
from tests.guests.lab import Guest
from tests.guests.tampering import guest_ram
from tests.guests.watched import Watched, watched

__all__ = ["Scene", "scene_of"]

_WAIT_S: Final = 50.0
"""Longest wait for a look that sees everything: one in fifty does not, in a guest that runs."""


@dataclass(frozen=True, slots=True)
class Scene:
    """This is a guest, and a session with the write grant.

    Attributes:
        its: the guest as it runs.
        symbols: addresses as the guest's own /proc/kallsyms tells them.
        victim: a program of a user's that rests, whose rights codepacks have seen for long.
    """

    its: Watched
    symbols: Mapping[str, int]
    victim: Process

    @property
    def guest(self) -> Guest:
        """This is the guest as the lab has it."""
        return self.its.guest

    def run(self, command: str) -> str:
        """This is what a command in the guest prints."""
        return self.guest.run(command).decode("utf-8", "backslashreplace")

    def look(self, pack: Codepack) -> list[Finding]:
        """This is what a codepack finds in the first look from now that sees everything it asks for."""
        machine = self.its.machine
        deadline = time.monotonic() + _WAIT_S
        while True:
            observed = ObservedGuest(machine.guest, pack.name)
            try:
                given = pack.inspect(observed, machine.machine.memory)
                found = [one for one in given if type(one) is Finding]
            except WalkFailed:
                found = []
            if not observed.gap_count:
                return found
            assert time.monotonic() < deadline, observed.gaps

    @contextmanager
    def still(self) -> Iterator[Tampered]:
        """This stops the guest for the length of the block, to write where it would trip at once."""
        self.guest.monitor.execute("stop")
        try:
            with guest_ram(self.guest) as ram:
                linux = self.its.machine.guest
                assert isinstance(linux, LinuxGuest)
                yield Tampered(self.guest, self.symbols, linux, ram)
        finally:
            self.guest.monitor.execute("cont")


@contextmanager
def scene_of(guest: Guest, profiles: Path, known: KnownSymbols) -> Iterator[Scene]:
    """This attaches to a guest for the length of the block."""
    symbols = kernel_symbols(guest, known)
    with watched(guest, profiles) as its:
        _search_slabs(its)
        pid = its.start("su user -c 'exec sleep 2998'")
        yield Scene(its, symbols, its.process("sleep", pid=pid))


def _search_slabs(its: Watched) -> None:
    """This looks until the slabs that processes lie in are known, and with the next look whoever lies there.

    All of RAM is searched for them at first sight. On a busy host one look has no time for all of it.
    """
    guest = its.machine.guest
    deadline = time.monotonic() + _WAIT_S
    while True:
        processes = {row.address for row in guest.processes()}
        seen = {row.address for row in guest.task_sightings() if row.view is TaskView.SLAB}
        if processes <= seen:
            return
        assert time.monotonic() < deadline, (
            f"{len(processes - seen)} of {len(processes)} are missing"
        )
