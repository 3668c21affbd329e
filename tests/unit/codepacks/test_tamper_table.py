"""The table of ways to tamper with guests (tests/guests/tamper) is whole, and what it changes is changed."""

import pytest

from qvmi.cli.declared.words import PACKS
from qvmi.codepacks.detectors.privileges import is_set_uid
from qvmi.testing import fake_process, fake_program
from tests.guests.tamper.mutation import Mutation, mutated
from tests.guests.tamper.table import ELSEWHERE, SCENARIOS, documented
from tests.repository.tree import ROOT

WRONG = Mutation(
    "codepacks.detectors.privileges", "program.owner == _ROOT", "program.owner != _ROOT"
)


def test_every_detector_has_scenarios_and_each_of_them_a_change_that_blinds_it() -> None:
    rows = {
        name: [one for one in SCENARIOS if one.codepack == name] for name in set(PACKS) - ELSEWHERE
    }
    assert len(SCENARIOS) >= 25
    assert all(rows.values())
    assert all(any(one.mutations for one in its) for its in rows.values())
    assert sum(map(len, rows.values())) == len(SCENARIOS)
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)
    assert len({one.codepack for one in SCENARIOS if one.on_arm64}) >= 2


def test_the_table_is_in_the_documents() -> None:
    assert documented() in (ROOT / "docs" / "codepacks.md").read_text()


@pytest.mark.parametrize("mutation", {one for row in SCENARIOS for one in row.mutations}, ids=str)
def test_every_change_of_a_detector_fits_its_source_and_changes_it(mutation: Mutation) -> None:
    with mutated(mutation):
        pass


def test_a_detector_that_is_changed_does_something_else_until_the_block_ends() -> None:
    program = fake_program(fake_process(7), mode=0o104755, owner=0)
    assert is_set_uid(program)
    with mutated(WRONG):
        assert not is_set_uid(program)
    assert is_set_uid(program)


@pytest.mark.parametrize(
    "mutation",
    [
        Mutation("codepacks.detectors.privileges", "no such text", ""),
        Mutation(
            "codepacks.detectors.privileges", "import dataclass", "import dataclass  # nothing else"
        ),
        Mutation(
            "codepacks.detectors.privileges", "is_root(its)", "not is_root(its)"
        ),  # in several places
    ],
)
def test_a_change_that_is_none_is_refused(mutation: Mutation) -> None:
    with pytest.raises(AssertionError), mutated(mutation):
        pass
