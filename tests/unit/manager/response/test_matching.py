"""Which alerts lead to a run: as the playbook says, once for each, and so often an hour."""

import pytest

from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Severity
from qvmi.manager.response.episodes import MAX_KEYS, MAX_RAISED
from qvmi.manager.response.matching import MAX_WAITING, Matcher, Past
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
    past = [
        Past("book", (alert(key="a"),), (), 0.0),
        Past("other", (alert(key="b"),), (), 0.0),
    ]
    second = Matcher([book], past)
    assert not second.offer(alert(key="a"), now=0.0)
    assert second.offer(alert(key="b"), now=0.0)


def leads(judge: Matcher, *said: Alert) -> list[bool]:
    """This tells which of some alerts led to a run."""
    return [bool(judge.offer(one, now=float(at))) for at, one in enumerate(said)]


def test_what_was_cleared_and_is_raised_again_leads_to_another_run_and_when_told_again_to_none() -> (
    None
):
    gone = alert(cleared=True)
    first, second, third = (
        alert(first_seen=at) for at in (10.5, 20.5, 5.5)
    )  # a clock was set back
    said = [first, first, gone, first, gone, second, second, gone, third, first, second, third]
    assert leads(matcher(When()), *said) == [
        *(True, False, False, False, False),
        *(True, False, False),
        *(True, False, False, False),
    ]


def test_what_a_codepack_raises_again_that_has_forgotten_it_is_no_other_episode() -> None:
    first, again, later = (alert(first_seen=at) for at in (10.0, 20.0, 30.0))
    said = [first, again, alert(cleared=True), again, first, later]
    assert leads(matcher(When()), *said) == [True, False, False, False, False, True]


def test_what_another_codepack_or_another_key_clears_does_not_count() -> None:
    others = [alert("two", cleared=True), alert(key="other", cleared=True)]
    assert leads(matcher(When(codepack="one")), alert(), *others, alert(first_seen=9.0)) == [
        *(True, False, False, False),
    ]


def test_after_a_restart_an_episode_is_another_only_behind_a_clearance() -> None:
    book = Playbook("book", When(), (NicDown(),))
    key = ("one", "k")
    stands = [Past("book", (alert(),), [key], 0.0), Past("book", (alert(first_seen=5.0),), (), 1.0)]
    again, later = alert(first_seen=5.0), alert(first_seen=9.0)
    assert leads(Matcher([book], stands), alert(), again, later) == [False, False, False]
    gone = [Past("book", (again,), [key], 1.0)]
    assert leads(Matcher([book], gone), again, later, later) == [False, True, False]


def test_who_raises_and_clears_without_end_gets_no_more_runs_than_an_hour_has_also_after_a_restart() -> (
    None
):
    judge = matcher(When(), most=2)
    said = [
        judge.offer(alert(first_seen=float(at), cleared=bool(at % 2)), now=float(at))
        for at in range(40)
    ]
    runs = [one.withheld for cases in said for one in cases]
    assert runs == ["", "", *["it was run 2 times in an hour"] * 18]
    book = Playbook("book", When(), (NicDown(),), at_most_per_hour=2)
    past = [Past("book", (alert(),), [("one", "k")], at) for at in (0.0, 2.0)]
    second = Matcher([book], past)
    assert second.offer(alert(first_seen=50.0), now=100.0)[0].withheld
    assert not second.offer(alert(key="other"), now=3601.0)[0].withheld


def test_two_that_agree_again_lead_to_another_run_once_both_were_cleared() -> None:
    judge = matcher(AGREE)
    pair = [alert("one", pid=7), alert("two", pid=7)]
    assert leads(judge, *pair) == [False, True]
    again = [alert("one", pid=7, first_seen=9.0), alert("two", pid=7, first_seen=9.0)]
    gone = [alert(name, cleared=True) for name in ("one", "two")]
    assert leads(judge, gone[1], again[1]) == [False, False]  # the first one stands yet
    assert leads(judge, gone[0], gone[1], *again) == [False, False, False, True]


def test_what_is_remembered_is_bounded() -> None:
    judge = matcher(When(), most=1)
    for number in range(MAX_KEYS + 1):
        judge.offer(alert(key=f"{number}"), now=0.0)
    assert leads(judge, alert(key="1"), alert(key="0")) == [False, True]
    often = [alert(first_seen=float(at)) for at in range(MAX_RAISED + 1)]
    assert leads(judge, *often, alert(cleared=True), often[1], often[0]) == [
        *(True, *[False] * MAX_RAISED),
        *(False, False, True),
    ]


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
