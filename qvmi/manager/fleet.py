"""The processes of one machine's codepacks: who each one is, where it lives, and what it is given."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.manager.confinement import Confinement, close_modes, own_uids
from qvmi.manager.home import Home
from qvmi.manager.jail import ADVISORY, Jail, find_jail
from qvmi.manager.orders import Orders
from qvmi.manager.pack_accounts import PackAccounts
from qvmi.manager.pack_code import sealed
from qvmi.manager.pack_process import PackProcess, Place, start
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.qemu_sockets import QemuSockets, qemu_sockets
from qvmi.policy import Grant
from qvmi.remote.handed_memory import HandedMemory

__all__ = ["Fleet", "Identities", "identities"]

_UNTRIED: Final = Jail(Confinement("nothing"), holds=False, reasons=("nothing was tried",))


@dataclass(frozen=True, slots=True)
class Identities:
    """These are the uids of codepacks, and the group that may reach the broker; None where they have none."""

    of_packs: tuple[int | None, ...]
    group: int | None


@contextmanager
def identities(count: int) -> Iterator[Identities]:
    """This reserves who codepacks are, where the manager can choose: only root can.

    Raises:
        UsageError: there are not so many uids that nobody has.
    """
    if os.geteuid() != 0:
        yield Identities((None,) * count, None)
        return
    with own_uids(count + 1) as uids:
        if len(uids) <= count:
            raise UsageError(f"{count} codepacks: only {len(uids)} uids of the host are free")
        yield Identities(tuple(uids[1:]), uids[0])


class Fleet:
    """These are the processes of the codepacks.

    Args:
        machine: which they look at.
        packs: the codepacks.
        home: where their folders are.
        who: their identities, in the same order.
        vm: the machine's name on the bus.

    Attributes:
        socket: the broker's; set before any is started.
        accounts: what they are let in by.
        jail: what keeps them.
        running: those that run, by name.

    Raises:
        NotDirect: the machine's RAM is not shared by QEMU.
    """

    def __init__(
        self, machine: Machine, packs: Sequence[PackSpec], home: Home, who: Identities, *, vm: str
    ) -> None:
        self.socket = Path()
        self.jail = _UNTRIED
        self.running: dict[str, PackProcess] = {}
        self._memory, self._descriptors = HandedMemory.of(machine.memory)
        self._machine = machine
        self._packs = packs
        self._home = home
        self._vm = vm
        self._group = who.group
        self._uids = dict(zip((spec.name for spec in packs), who.of_packs, strict=True))
        self.accounts = PackAccounts(vm, packs)
        self._caveats: tuple[str, ...] = ()
        close_modes(self._descriptors)

    @property
    def caveats(self) -> tuple[str, ...]:
        """These are said with each alert."""
        return self._caveats if self.jail.holds else (ADVISORY, *self._caveats)

    def beware(self, caveats: tuple[str, ...]) -> None:
        """This has something said with each alert from now on."""
        self._caveats = caveats
        for process in self.running.values():
            process.tell(self.caveats)

    async def find_jail(self) -> None:
        """This finds out what keeps codepacks' processes here.

        Raises:
            CodepackError: none can be started at all.
        """
        spec = self._packs[0]

        async def attempt(confinement: Confinement) -> PackProcess:
            return await self._started(spec, confinement, probe=True)

        self.jail = await find_jail(attempt)

    async def start(self, spec: PackSpec) -> PackProcess:
        """This starts the process of a codepack, with secrets that no process before it had.

        Raises:
            CodepackError: it cannot be started.
        """
        await self.accounts.renew(spec)
        await asyncio.to_thread(self._home.note_profile, self._machine)
        return await self._started(spec, self.jail.confinement)

    async def _started(
        self, spec: PackSpec, confinement: Confinement, *, probe: bool = False
    ) -> PackProcess:
        uid = self._uids[spec.name] if confinement.other_uid else None
        gid = self._group if confinement.other_uid else None
        # A probe runs no code of the codepack's; whatever that has put there keeps nobody else from running.
        folder = await asyncio.to_thread(
            self._home.of_pack, spec.name, uid, gid, contents=not probe
        )
        pid = self._machine.monitor.peer_pid()
        sockets = await asyncio.to_thread(qemu_sockets, pid, self._machine.address)
        place = Place(folder, uid, gid, sockets.places)
        orders = self._orders(spec, confinement, sockets, probe=probe)
        if spec.code is None or probe:
            return await start(orders, place)
        code = sealed(spec.code)
        try:
            return await start(msgspec.structs.replace(orders, code=code), place)
        finally:
            os.close(code)

    def _orders(
        self, spec: PackSpec, confinement: Confinement, sockets: QemuSockets, *, probe: bool
    ) -> Orders:
        qemu = self._machine.monitor.peer_pid()
        speaks, sends = self.accounts.of(spec.name)
        return Orders(
            vm=self._vm,
            codepack=spec.name,
            entry=spec.entry,
            interval_s=spec.interval_s,
            address=self._machine.address,
            reads_registers=spec.policy.allows(Grant.READ_REGISTERS),
            socket=str(self.socket),
            secret=speaks.secret,
            outbox_secret=sends.secret,
            profiles=str(self._home.profiles),
            memory=self._memory,
            descriptors=self._descriptors,
            landlock=confinement.landlock,
            writers=tuple(pid for pid in (qemu, os.getpid()) if pid is not None),
            sockets=sockets.places,
            unseen=sockets.unseen,
            memory_bytes=spec.memory_bytes,
            look_s=spec.look_s,
            triggers=replace(spec.triggers, answers=spec.is_asked),
            asks=self.accounts.asked_by(spec),
            caveats=self.caveats,
            held_by=self.jail.held_by,
            probe=probe,
        )
