"""Guests are tampered with in every way of the table, and the codepack that must tell of it does.

Its next look tells it, so it is told within the codepack's interval: looks of a guest that runs count when
they saw everything that they asked for. And with each change of the detector that the table names, it is
not told any more: what is not looked at cannot turn a test red.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Final

import pytest

from qvmi.codepacks.codepack import Codepack, Finding
from tests.guests.tamper.mutation import Mutation, mutated
from tests.guests.tamper.scenario import X86_64, Scenario, Sign, explained
from tests.guests.tamper.scene import Scene
from tests.guests.tamper.table import SCENARIOS
from tests.proofs import proof_size

WAIT_S: Final = 50.0
"""Longest wait for what was undone to be gone, and for evidence that depends on the moment."""


def named(row: object) -> str:
    assert isinstance(row, Scenario)
    return row.name


@pytest.mark.parametrize("row", SCENARIOS, ids=named)
def test_each_is_told_and_by_no_detector_that_is_changed(scene: Scene, row: Scenario) -> None:
    play(scene, row)


@pytest.mark.parametrize("row", [one for one in SCENARIOS if one.on_arm64], ids=named)
def test_each_is_told_on_arm64(arm: Scene, row: Scenario) -> None:
    play(arm, row)


def play(scene: Scene, row: Scenario) -> None:
    """This is one row of the table from its beginning to its end."""
    pack, before = ready(scene, row)
    with ExitStack() as undo:
        wrong = [(one, ready(scene, row, one)[0]) for one in changes(scene, row)]
        signs = undo.enter_context(row.tamper(scene))
        assert not any(row.told(signs, before)), "it is there before anything is done"
        told = look_for(scene, row, pack, signs)
        for mutation, changed in wrong:
            with mutated(mutation):
                found = scene.look(changed)
            assert None in row.told(signs, found), f"it is told with {mutation}"
    if not row.stays:
        clears(scene, pack if row.learns else row.pack(), told)


def changes(scene: Scene, row: Scenario) -> tuple[Mutation, ...]:
    """These are the changes of the detector that are tried: at full size on every kernel, else on one."""
    everywhere = proof_size(ci=0, full=1)
    return row.mutations if everywhere or scene.guest.config.kernel == X86_64[0] else ()


def ready(
    scene: Scene, row: Scenario, mutation: Mutation | None = None
) -> tuple[Codepack, list[Finding]]:
    """This is a codepack that has seen the guest before, where it has to, and what it found then."""
    pack = row.pack()
    assert pack.name == row.codepack
    if not row.learns:
        return pack, []
    with mutated(mutation) if mutation else nullcontext():
        return pack, scene.look(pack)


def look_for(scene: Scene, row: Scenario, pack: Codepack, signs: Sequence[Sign]) -> list[Finding]:
    """This looks once, or until the evidence is there, where it depends on the moment."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = scene.look(pack)
        told = [one for one in row.told(signs, found) if one is not None]
        if len(told) == len(signs):
            break
        missed = f"{signs} in\n{explained(found)}"
        assert row.depends, missed
        assert time.monotonic() < deadline, missed
    assert not (row.still and row.learns) or scene.look(pack) == found
    assert not row.still or len(found) == len(signs), explained(found)
    return told


def clears(scene: Scene, pack: Codepack, told: Sequence[Finding]) -> None:
    """This looks until nothing of what was told is found any more."""
    keys = {one.key for one in told}
    deadline = time.monotonic() + WAIT_S
    while keys & {one.key for one in scene.look(pack)}:
        assert time.monotonic() < deadline, f"still there: {keys}"
