"""A running guest and a session that may write into it, for codepacks to look at what is tampered with."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

import qvmi
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.policy import OBSERVE, Grant
from qvmi.semantics.guest_os import Process
from qvmi.symbols.layout import field_offset
from tests.guests.lab import Guest

__all__ = ["POINTER", "Watched", "of_pid", "told", "unlinked", "watched"]

POINTER: Final = Struct("<Q")
_WAIT_S: Final = 50.0
"""Longest wait for what was planted to be seen: on a loaded host the guest takes its time."""


@dataclass(frozen=True, slots=True)
class Watched:
    """This is a guest, and a session with the write grant."""

    guest: Guest
    machine: qvmi.SyncMachine

    def look(self, pack: Codepack) -> dict[str, Finding]:
        """This lets a codepack look once, and gives what it finds by key."""
        found = pack.inspect(self.machine.guest, self.machine.machine.memory)
        return {one.key: one for one in found if isinstance(one, Finding)}

    def sees(self, pack: Codepack, wanted: Callable[[Finding], bool]) -> Finding:
        """This lets a codepack look until it has found something."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            findings = self.look(pack)
            for finding in findings.values():
                if wanted(finding):
                    return finding
            assert time.monotonic() < deadline, [one.claim for one in findings.values()]

    def misses(self, pack: Codepack, unwanted: Callable[[Finding], bool]) -> None:
        """This lets a codepack look until it does not find something any more."""
        deadline = time.monotonic() + _WAIT_S
        while any(map(unwanted, self.look(pack).values())):
            assert time.monotonic() < deadline, "it is still found"

    def process(self, name: str, **fields: object) -> Process:
        """This is the process of a name, and of other fields, as soon as there is one that rests.

        One that does not may be in the midst of exec, which gives it other credentials.
        """
        deadline = time.monotonic() + _WAIT_S
        while True:
            found = self.machine.guest.processes().find(name=name, **{"state": "S", **fields})
            if found is not None:
                return found
            assert time.monotonic() < deadline, f"no process {name}"

    def start(self, command: str) -> int:
        """This starts a program in the guest that is to go on, and gives its pid."""
        line = self.guest.run(f"{command} >/dev/null 2>&1 </dev/null & echo $!")
        return int(line)

    def member(self, struct: str, *names: str) -> int:
        """This is the offset of a member."""
        return field_offset(self.machine.symbols, struct, *names)

    def pointer(self, va: int) -> int:
        """This is what a pointer of the kernel's holds."""
        space = self.machine.guest.kernel.space
        return int(POINTER.unpack(space.read(qvmi.Va(va), POINTER.size))[0])

    @contextmanager
    def written(self, va: int, data: bytes) -> Iterator[None]:
        """This writes into the running guest's kernel for the length of the block."""
        was = self.machine.write_virtual(qvmi.Va(va), data)
        try:
            yield
        finally:
            self.machine.write_virtual(qvmi.Va(va), was.old)


@contextmanager
def watched(guest: Guest, profiles: Path) -> Iterator[Watched]:
    """This attaches to a guest for the length of the block."""
    policy = OBSERVE.plus(Grant.WRITE)
    with qvmi.attach_sync(guest.qmp, cache=profiles, policy=policy) as machine:
        yield Watched(guest, machine)


@contextmanager
def unlinked(its: Watched, entry: int) -> Iterator[None]:
    """This takes an entry off its list for the length of the block, as ``list_del_init`` does."""
    following, before = its.pointer(entry), its.pointer(entry + POINTER.size)
    with (
        its.written(entry, 2 * POINTER.pack(entry)),
        its.written(before, POINTER.pack(following)),
        its.written(following + POINTER.size, POINTER.pack(before)),
    ):
        yield


def told(findings: Iterable[Finding]) -> set[tuple[str, str]]:
    """These are the names of the processes that findings are about, and the techniques."""
    return {(finding.claim.split("(")[1].split(")")[0], finding.technique) for finding in findings}


def of_pid(pid: int, technique: str) -> Callable[[Finding], bool]:
    """This recognises a finding about a process."""

    def is_it(finding: Finding) -> bool:
        return finding.technique == technique and finding.claim.startswith(f"process {pid} (")

    return is_it
