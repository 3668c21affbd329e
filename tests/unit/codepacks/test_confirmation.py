"""When a finding is believed."""

from collections import deque

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.confirmation import MAX_KEYS, MAX_UNSEEN_ROUNDS, Changes, Confirmation
from tests.unit.codepacks.packs import finding


def rounds(confirmation: Confirmation, *looks: str | None) -> list[Changes]:
    """Plays looks: each is the keys that it finds, one letter each; None is one that saw nothing."""
    return [
        confirmation.update(
            [finding(key) for key in look or ""],
            complete=look is not None,
            at=float(number),
            clock=float(number),
        )
        for number, look in enumerate(looks)
    ]


def keys(changes: list[Changes]) -> list[tuple[str, str]]:
    """Gives the keys raised and cleared by each look."""
    return [
        (
            "".join(sorted(one.finding.key for one in change.raised)),
            "".join(sorted(one.finding.key for one in change.cleared)),
        )
        for change in changes
    ]


def test_one_look_is_no_alert() -> None:
    assert keys(rounds(Confirmation(), "a", "", "a", "", "a")) == [("", "")] * 5


def test_two_looks_in_a_row_raise_once() -> None:
    assert keys(rounds(Confirmation(), "a", "a", "a", "a")) == [
        ("", ""),
        ("a", ""),
        ("", ""),
        ("", ""),
    ]


def test_two_looks_without_it_clear_once() -> None:
    assert keys(rounds(Confirmation(), "a", "a", "", "", "")) == [
        ("", ""),
        ("a", ""),
        ("", ""),
        ("", "a"),
        ("", ""),
    ]


def test_one_look_without_it_clears_nothing() -> None:
    assert keys(rounds(Confirmation(), "a", "a", "", "a", "", "a")) == [
        ("", ""),
        ("a", ""),
        *[("", "")] * 4,
    ]


def test_what_was_cleared_can_be_raised_again() -> None:
    assert keys(rounds(Confirmation(), "a", "a", "", "", "a", "a"))[-1] == ("a", "")


def test_another_key_confirms_nothing() -> None:
    assert keys(rounds(Confirmation(), "a", "b", "c", "d")) == [("", "")] * 4


def test_an_incomplete_look_clears_nothing_however_often() -> None:
    assert keys(rounds(Confirmation(), "a", "a", *[None] * 50)) == [
        ("", ""),
        ("a", ""),
        *[("", "")] * 50,
    ]


def test_an_incomplete_look_does_not_break_a_row() -> None:
    assert keys(rounds(Confirmation(), "a", None, "a"))[-1] == ("a", "")


def test_what_was_seen_once_is_forgotten_after_many_incomplete_looks() -> None:
    assert keys(rounds(Confirmation(), "a", *[None] * MAX_UNSEEN_ROUNDS, "a"))[-1] == ("", "")


def test_two_findings_of_one_key_in_one_look_are_one_sighting() -> None:
    assert keys(rounds(Confirmation(), "aa", "")) == [("", ""), ("", "")]


def test_what_must_settle_is_raised_when_it_was_seen_for_so_long_and_once() -> None:
    confirmation = Confirmation()
    slow = msgspec.structs.replace(finding("a"), settle_s=5.0)
    raised = [
        len(confirmation.update([slow], complete=True, at=0.0, clock=100.0 + number).raised)
        for number in range(10)
    ]
    assert raised == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_what_must_settle_begins_anew_when_it_was_missed() -> None:
    confirmation = Confirmation()
    slow = msgspec.structs.replace(finding("a"), settle_s=5.0)
    for number in range(20):
        seen = [slow] if number % 5 else []
        assert confirmation.update(seen, complete=True, at=0.0, clock=float(number)).raised == ()


def test_settling_takes_two_looks_even_if_they_are_far_apart() -> None:
    confirmation = Confirmation()
    slow = msgspec.structs.replace(finding("a"), settle_s=5.0)
    for clock, raised in ((0.0, 0), (100.0, 1)):
        changes = confirmation.update([slow], complete=True, at=0.0, clock=clock)
        assert len(changes.raised) == raised


def test_the_time_that_looks_take_settles_nothing() -> None:
    confirmation = Confirmation()
    slow = msgspec.structs.replace(finding("a"), settle_s=5.0)
    raised = [
        len(confirmation.update([slow], complete=True, at=0.0, clock=began, took_s=took).raised)
        for began, took in ((0.0, 4.0), (5.0, 9.0), (8.9, 9.0), (9.0, 0.0))
    ]
    assert raised == [0, 0, 0, 1]


def test_setting_the_hosts_clock_settles_nothing() -> None:
    confirmation = Confirmation()
    slow = msgspec.structs.replace(finding("a"), settle_s=5.0)
    for at in (0.0, 1e9):
        assert confirmation.update([slow], complete=True, at=at, clock=0.0).raised == ()


def test_tells_since_when_and_in_how_many_looks_it_was_seen() -> None:
    confirmation = Confirmation()
    changes = rounds(confirmation, "", "a", "a", "a", "", "")
    [raised], [cleared] = changes[2].raised, changes[5].cleared
    assert (raised.rounds, raised.first_seen, raised.last_seen) == (2, 1.0, 2.0)
    assert (cleared.rounds, cleared.first_seen, cleared.last_seen) == (2, 1.0, 3.0)
    assert cleared.finding == raised.finding


def test_forgetting_gives_back_what_was_confirmed_and_only_that() -> None:
    confirmation = Confirmation()
    rounds(confirmation, "a", "ab")
    assert [one.finding.key for one in confirmation.forget()] == ["a"]
    assert keys(rounds(confirmation, "ab")) == [("", "")]


def many(number: int) -> list[Finding]:
    return [finding(f"key {one}") for one in range(number)]


def test_follows_a_bounded_number_and_counts_the_rest() -> None:
    confirmation = Confirmation()
    for _ in range(2):
        changes = confirmation.update(many(MAX_KEYS + 7), complete=True, at=0.0, clock=0.0)
        assert changes.overflow == 7
    assert len(changes.raised) == MAX_KEYS


def test_a_crowd_that_comes_once_does_not_keep_out_what_stays() -> None:
    confirmation = Confirmation()
    confirmation.update(many(MAX_KEYS), complete=True, at=0.0, clock=0.0)
    assert keys(rounds(confirmation, "a", "a")) == [("", ""), ("a", "")]


def test_a_crowd_does_not_keep_out_what_stays_though_every_look_is_incomplete() -> None:
    confirmation = Confirmation()
    confirmation.update(many(MAX_KEYS), complete=False, at=0.0, clock=0.0)
    changes = [
        confirmation.update([finding("a")], complete=False, at=0.0, clock=0.0)
        for _ in range(MAX_UNSEEN_ROUNDS + 2)
    ]
    assert [one.finding.key for change in changes for one in change.raised] == ["a"]


@given(st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=40))
def test_agrees_with_a_model_that_keeps_the_last_two_looks(looks: list[str]) -> None:
    changes = keys(rounds(Confirmation(), *looks))
    for key in "ab":
        raised = False
        last: deque[bool] = deque(maxlen=2)
        for look, (up, down) in zip(looks, changes, strict=True):
            last.append(key in look)
            up_expected = not raised and list(last) == [True, True]
            down_expected = raised and list(last) == [False, False]
            raised = (raised or up_expected) and not down_expected
            assert ((key in up), (key in down)) == (up_expected, down_expected)


def test_what_waits_is_what_the_last_look_saw_and_is_not_confirmed() -> None:
    confirmation = Confirmation()
    rounds(confirmation, "ab", "a")
    assert not confirmation.waiting
    rounds(confirmation, "ac", None)
    assert not confirmation.waiting
    rounds(confirmation, "a", "ad")
    assert [one.finding.key for one in confirmation.waiting] == ["d"]
    assert [one.finding.key for one in confirmation.standing] == ["a"]


def test_what_there_is_no_room_for_is_held_back_and_raised_later() -> None:
    confirmation = Confirmation()
    rounds(confirmation, "abc")
    first, second = (
        confirmation.update(
            [finding(key) for key in "abc"], complete=True, at=1.0, clock=1.0, room=room
        )
        for room in (2, 2)
    )
    assert ([one.finding.key for one in first.raised], first.held_back) == (["a", "b"], 1)
    assert ([one.finding.key for one in second.raised], second.held_back) == (["c"], 0)


def test_what_was_confirmed_before_is_not_raised_again_but_cleared() -> None:
    before, after = Confirmation(), Confirmation()
    rounds(before, "ab", "ab")
    after.remember(before.standing)
    assert keys(rounds(after, "a", "a", "a")) == [("", ""), ("", "b"), ("", "")]
    assert [one.finding.key for one in after.standing] == ["a"]
    assert keys(rounds(after, "", "")) == [("", ""), ("", "a")]
