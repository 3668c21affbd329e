"""A few looks of one codepack, one after the other, and what they found: no bus, nothing kept."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.confirmation import ROUNDS_TO_RAISE, Confirmation, Confirmed
from qvmi.codepacks.look import Look
from qvmi.codepacks.looker import LOOK_DEADLINE_S, InspectedMachine, Looker
from qvmi.codepacks.status import Sight
from qvmi.errors import UsageError
from qvmi.policy import READ_ONLY, Policy

__all__ = ["MAX_ROUNDS", "Inspection", "inspect_guest"]

MAX_ROUNDS: Final = 10_000
"""Looks of one inspection; whoever wants more wants a watch."""

PATIENCE_S: Final = 60.0
"""How long findings are waited for that are neither confirmed nor gone: some flicker for ever."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """This is what came of it.

    Args:
        confirmed: what was confirmed, also where it was gone in the end.
        unconfirmed: what the last look found besides; all of it where there was one look.
        rounds: looks that were begun.
        last: the last of them: how far it saw, and what it missed.
    """

    confirmed: tuple[Confirmed, ...]
    unconfirmed: tuple[Confirmed, ...]
    rounds: int
    last: Look

    @property
    def found_anything(self) -> bool:
        """This tells whether there is something to worry about."""
        return bool(self.confirmed or self.unconfirmed)

    @property
    def saw_all(self) -> bool:
        """This tells whether nothing found means that nothing is there."""
        return self.last.sight is Sight.FULL


async def inspect_guest(
    codepack: Codepack,
    machine: InspectedMachine,
    *,
    rounds: int | None = None,
    deadline_s: float = LOOK_DEADLINE_S,
    policy: Policy = READ_ONLY,
) -> Inspection:
    """This lets a codepack look until what it finds is confirmed or gone.

    Args:
        codepack: which looks.
        machine: at what.
        rounds: how many looks, from 1 to :data:`MAX_ROUNDS`; None for as many as that takes, two at
            least and a minute at most.
        deadline_s: the longest look, in seconds.
        policy: what the codepack may be shown beside memory.

    Raises:
        UsageError: so many looks cannot be asked for.
        CodepackError: what the codepack wants of that cannot be used.
        MachineGone: there is no machine any more.
    """
    if rounds is not None and not 1 <= rounds <= MAX_ROUNDS:
        raise UsageError(f"{rounds} looks: from 1 to {MAX_ROUNDS}")
    looker = Looker(codepack, machine, deadline_s=deadline_s, policy=policy)
    confirmation = Confirmation()
    confirmed: dict[str, Confirmed] = {}
    ends = time.monotonic() + PATIENCE_S
    number = 0
    while True:
        number += 1
        began = time.monotonic()
        due = began + codepack.interval_s
        result = await looker.look()
        changes = confirmation.update(
            result.findings,
            complete=result.sight is Sight.FULL,
            at=result.provenance.at,
            clock=began,
            took_s=time.monotonic() - began,
        )
        confirmed |= {one.finding.key: one for one in changes.raised}
        settled = number >= ROUNDS_TO_RAISE and not confirmation.waiting
        if number >= (rounds or MAX_ROUNDS) or (rounds is None and (settled or due > ends)):
            break
        await asyncio.sleep(due - time.monotonic())
    return Inspection(tuple(confirmed.values()), confirmation.waiting, number, result)
