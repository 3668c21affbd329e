"""A machine as who attached to it has it, and as a codepack in another process has it by the manager."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import qvmi
from qvmi.machine.machine import Machine
from qvmi.manager.control_service import ControlService
from qvmi.policy import Grant, Policy
from qvmi.remote.handed_memory import HandedMemory
from qvmi.remote.remote_machine import RemoteMachine
from qvmi.semantics.selection import Choices
from qvmi.symbols.profile import ProfileCache
from tests.guests.lab import Guest

__all__ = ["MACHINES", "PACK", "Open", "by_manager", "remote_machine"]

PACK: Final = "pack"

Open = Callable[[Guest, Path, Policy], AbstractAsyncContextManager[Machine | RemoteMachine]]
"""Opens a machine: of a guest, with a cache of profiles, under a policy."""


@asynccontextmanager
async def own(guest: Guest, profiles: Path, policy: Policy) -> AsyncIterator[Machine]:
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        yield machine


@asynccontextmanager
async def by_manager(guest: Guest, profiles: Path, policy: Policy) -> AsyncIterator[RemoteMachine]:
    async with (
        qvmi.attach(guest.qmp, cache=profiles) as machine,
        remote_machine(machine, profiles, {PACK: policy}) as remote,
    ):
        yield remote


@asynccontextmanager
async def remote_machine(
    machine: Machine, profiles: Path, policies: Mapping[str, Policy], *, lease_s: float = 5.0
) -> AsyncIterator[RemoteMachine]:
    service = ControlService(machine, policies, lease_s=lease_s)

    async def ask(question: dict[str, object], *, timeout_s: float) -> dict[str, object]:
        del timeout_s
        answer = await service.answer(PACK, json.loads(json.dumps(question)))
        told: dict[str, object] = json.loads(json.dumps(answer))
        return told

    handed, descriptors = HandedMemory.of(machine.memory)
    choices = Choices(cache=ProfileCache(profiles))
    remote = RemoteMachine(
        ask,
        handed.mapped(descriptors),
        choices,
        address=machine.address,
        reads_registers=policies[PACK].allows(Grant.READ_REGISTERS),
    )
    try:
        await remote.refresh()
        yield remote
    finally:
        await remote.close()
        await service.close()


MACHINES: Final[Mapping[str, Open]] = {"attached": own, "remote": by_manager}
