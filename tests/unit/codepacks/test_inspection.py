"""A few looks of one codepack, without a bus."""

from collections.abc import Iterable

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.inspection import MAX_ROUNDS, Inspection, inspect_guest
from qvmi.codepacks.status import Sight
from qvmi.errors import MachineGone, UsageError, WalkFailed
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.codepacks.packs import ScriptedPack, finding


class Looks:
    """A codepack's function that finds in each look what a letter stands for; the last is kept to."""

    def __init__(self, *looks: str) -> None:
        self.looks = looks
        self.count = 0

    def __call__(self, guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        guest.processes()
        keys = self.looks[min(self.count, len(self.looks) - 1)]
        self.count += 1
        return [finding(key) for key in keys]


def found(inspection: Inspection) -> tuple[str, str]:
    confirmed, unconfirmed = inspection.confirmed, inspection.unconfirmed
    return (
        "".join(one.finding.key for one in confirmed),
        "".join(one.finding.key for one in unconfirmed),
    )


@pytest.mark.parametrize(
    ("looks", "rounds", "expected"),
    [
        (("",), 2, ("", "")),
        (("a",), 2, ("a", "")),
        (("a", ""), 2, ("", "")),
        (("", "a"), 3, ("a", "")),
        (("a", "ab"), 3, ("ab", "")),
        (("a", "b", ""), 3, ("", "")),
    ],
)
@asynchronous
async def test_it_looks_until_what_is_found_is_confirmed_or_gone(
    looks: tuple[str, ...], rounds: int, expected: tuple[str, str]
) -> None:
    inspection = await inspect_guest(ScriptedPack(Looks(*looks)), FakeMachine())
    assert (inspection.rounds, found(inspection)) == (rounds, expected)
    assert inspection.saw_all


@asynchronous
async def test_one_look_confirms_nothing_and_says_so() -> None:
    inspection = await inspect_guest(ScriptedPack(Looks("a")), FakeMachine(), rounds=1)
    assert (inspection.rounds, found(inspection)) == (1, ("", "a"))
    assert inspection.found_anything


@asynchronous
async def test_what_is_gone_in_the_end_was_found_all_the_same() -> None:
    inspection = await inspect_guest(ScriptedPack(Looks("a", "a", "")), FakeMachine(), rounds=6)
    assert (inspection.rounds, found(inspection)) == (6, ("a", ""))


@asynchronous
async def test_a_look_that_could_not_see_is_no_clean_one() -> None:
    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        raise WalkFailed("init_task.tasks", "it is a loop")

    inspection = await inspect_guest(ScriptedPack(inspect), FakeMachine(), rounds=2)
    assert not inspection.saw_all
    assert not inspection.found_anything
    assert inspection.last.sight is Sight.BLIND


@asynchronous
async def test_a_machine_that_ends_ends_it() -> None:
    machine = FakeMachine()
    machine.fail_next("run_state", MachineGone("watch"))
    with pytest.raises(MachineGone):
        await inspect_guest(ScriptedPack(Looks("a")), machine)


@pytest.mark.parametrize("rounds", [0, -1, MAX_ROUNDS + 1])
@asynchronous
async def test_no_looks_and_looks_without_end_are_refused(rounds: int) -> None:
    looks = Looks("")
    with pytest.raises(UsageError, match="from 1 to"):
        await inspect_guest(ScriptedPack(looks), FakeMachine(), rounds=rounds)
    assert looks.count == 0
