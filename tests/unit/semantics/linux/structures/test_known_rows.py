"""What looks list one after another, whatever lies behind a gap."""

import pytest

from qvmi.semantics.linux.structures.known_rows import KnownRows


def test_what_comes_and_goes_is_told_once() -> None:
    known = KnownRows({1: "one"})
    assert known.take({1: "one", 2: "two"}, is_whole=True) == (["two"], [])
    assert known.take({2: "two"}, is_whole=True) == ([], ["one"])
    assert known.take({2: "two"}, is_whole=True) == ([], [])


def test_what_a_gap_may_hide_is_not_gone_and_not_new_when_it_is_seen_again() -> None:
    known = KnownRows({1: "one"})
    assert known.take({}, is_whole=False) == ([], [])
    assert known.take({1: "one"}, is_whole=False) == ([], [])
    assert known.take({}, is_whole=True) == ([], ["one"])


def test_a_gap_for_ever_and_something_new_in_each_look_fill_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.structures.known_rows.MAX_HIDDEN", 3)
    known: KnownRows[int, int] = KnownRows()
    for number in range(100):
        assert known.take({number: number}, is_whole=False) == ([number], [])
    _, gone = known.take({}, is_whole=True)
    assert 99 in gone
    assert len(gone) <= 4
