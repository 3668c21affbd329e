"""Which alerts lead to a run: as the playbook says, once for each, and so often an hour."""

import pytest

from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Severity
from qvmi.manager.response.matching import MAX_WAITING, Matcher
from qvmi.manager.response.playbook import Agreement, Playbook, Same, When
from qvmi.manager.response.steps import NicDown
from tests.unit.manager.response.alerts import alert


def matcher(when: When, *, most: int = 60) -> Matcher:
    return Matcher([Playbook("book", when, (NicDown(),), at_most_per_hour=most)])


AGREE = When(codepack="one", severity=Severity.HIGH, agree=Agreement("two", Same.PID, 10.0))


@pytest.mark.parametrize(
    ("when", "leads"),
    [
        (When(), True),
        (When(codepack="one"), True),
        (When(codepack="two"), False),
        (When(severity=Severity.HIGH), True),
        (When(severity=Severity.CRITICAL), False),
        (When(technique="T1014"), True),
        (When(technique="T1014.001"), True),
        (When(technique="T1014.002"), False),
        (When(technique="T1015"), False),
    ],
)
def test_each_condition_is_asked(when: When, leads: bool) -> None:  # noqa: FBT001 - a parameter
    cases = matcher(when).offer(alert("one", technique="T1014.001"), now=0.0)
    assert bool(cases) is leads


def test_an_alert_leads_to_one_run_also_when_it_comes_again_and_after_a_restart() -> None:
    book = Playbook("book", When(), (NicDown(),))
    first = Matcher([book])
    assert first.offer(alert(key="a"), now=0.0)
    assert not first.offer(alert(key="a"), now=1.0)
    assert first.offer(alert(key="b"), now=2.0)
    second = Matcher([book], [("book", ("one", "a")), ("other", ("one", "b"))])
    assert not second.offer(alert(key="a"), now=0.0)
    assert second.offer(alert(key="b"), now=0.0)


def test_what_is_cleared_leads_to_nothing() -> None:
    assert not matcher(When()).offer(alert(cleared=True), now=0.0)


def test_more_runs_than_are_wanted_in_an_hour_are_withheld_and_told() -> None:
    judge = matcher(When(), most=2)
    said = [judge.offer(alert(key=str(number)), now=float(number))[0] for number in range(3)]
    assert [case.withheld for case in said] == ["", "", "it was run 2 times in an hour"]
    assert judge.offer(alert(key="later"), now=3600.5)[0].withheld == ""


@pytest.mark.parametrize("second_first", [False, True])
def test_two_agree_about_a_process_whichever_comes_first(second_first: bool) -> None:  # noqa: FBT001
    pair = [alert("one", pid=7), alert("two", pid=7, severity=Severity.LOW)]
    judge = matcher(AGREE)
    if second_first:
        pair.reverse()
    assert not judge.offer(pair[0], now=0.0)
    (case,) = judge.offer(pair[1], now=10.0)
    assert [one.codepack for one in case.alerts] == ["one", "two"]


@pytest.mark.parametrize(
    "other",
    [
        alert("two", pid=8),
        alert("two"),
        alert("three", pid=7),
        alert("one", key="other", pid=7),
        alert("two", address=7),
    ],
    ids=["another process", "no process", "a third one", "the same one", "a place"],
)
def test_what_is_no_agreement_leads_to_nothing(other: Alert) -> None:
    judge = matcher(AGREE)
    assert not judge.offer(alert("one", pid=7), now=0.0)
    assert not judge.offer(other, now=1.0)


def test_agreement_that_comes_too_late_or_of_what_was_cleared_is_none() -> None:
    judge = matcher(AGREE)
    judge.offer(alert("one", pid=7), now=0.0)
    assert not judge.offer(alert("two", key="late", pid=7), now=10.5)
    judge = matcher(AGREE)
    judge.offer(alert("one", pid=7), now=0.0)
    judge.offer(alert("one", pid=7, cleared=True), now=1.0)
    assert not judge.offer(alert("two", pid=7), now=2.0)


def test_two_agree_about_a_place() -> None:
    judge = matcher(When(codepack="one", agree=Agreement("two", Same.ADDRESS, 10.0)))
    judge.offer(alert("one", address=0xFFFF), now=0.0)
    assert judge.offer(alert("two", address=0xFFFF), now=1.0)


def test_a_flood_of_alerts_that_nobody_agrees_with_is_bounded() -> None:
    judge = matcher(AGREE)
    for number in range(2 * MAX_WAITING):
        judge.offer(alert("one", key=str(number), pid=number), now=0.0)
    assert not judge.offer(alert("two", key="old", pid=0), now=0.0)
    assert judge.offer(alert("two", key="new", pid=2 * MAX_WAITING - 1), now=0.0)
