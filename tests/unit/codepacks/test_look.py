"""One look of one codepack."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import cast

import pytest

from qvmi.codepacks.codepack import Finding, Observation, Severity, Unseen
from qvmi.codepacks.look import MAX_FINDING_BYTES, MAX_FINDINGS, Look, in_words, look
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.status import Sight
from qvmi.errors import (
    CodepackError,
    MachineGone,
    MemoryFault,
    StaleView,
    SymbolNotFound,
    UsageError,
    WalkFailed,
)
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Gap, GuestOS
from qvmi.testing import FakeGuest, FakeMemory
from tests.unit.codepacks.packs import ScriptedPack, finding

Inspect = Callable[[GuestOS, PhysicalMemory], Iterable[Finding | Unseen]]


def look_with(inspect: Inspect, guest: FakeGuest | None = None) -> Look:
    pack = ScriptedPack(inspect)
    return look(pack, ObservedGuest(guest or FakeGuest(), pack.name), FakeMemory({}))


def raising(error: BaseException) -> Inspect:
    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterator[Finding]:
        yield finding("before")
        raise error

    return inspect


def test_gives_what_was_found() -> None:
    result = look_with(lambda _, __: [finding("a"), finding("b")])
    assert (result.sight, [one.key for one in result.findings]) == (Sight.FULL, ["a", "b"])


def test_says_that_parts_could_not_be_seen() -> None:
    guest = FakeGuest()
    guest.show_processes([], gaps=[Gap("tasks", None, "torn")])

    def inspect(seen: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        seen.processes()
        return []

    result = look_with(inspect, guest)
    assert (result.sight, result.gap_count) == (Sight.GAPS, 1)
    assert result.gaps == (Gap("tasks", None, "torn"),)


@pytest.mark.parametrize(
    "error",
    [
        WalkFailed("tasks", "x"),
        MemoryFault(0, 8),
        SymbolNotFound("init_task"),
        StaleView("reset"),
        MachineGone("look"),
    ],
)
def test_an_error_of_the_guest_is_blindness_and_no_failure(error: Exception) -> None:
    result = look_with(raising(error))
    assert (result.sight, result.error) == (Sight.BLIND, error)
    assert [one.key for one in result.findings] == ["before"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        RecursionError(),
        MemoryError(),
        AssertionError(),
        UsageError("x"),
        CodepackError("scripted", "x"),
        SystemExit(0),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        StopIteration(),
        BaseException("x"),
    ],
)
def test_whatever_a_codepack_raises_is_its_failure(error: BaseException) -> None:
    result = look_with(raising(error))
    assert result.sight is Sight.FAILED
    assert result.problem


def test_a_real_exit_of_a_codepack_is_its_failure() -> None:
    assert look_with(lambda _, __: sys.exit(3)).sight is Sight.FAILED


@pytest.mark.parametrize("answer", [None, 7, object(), "text", [None], [1], [{"claim": "x"}], [[]]])
def test_what_is_no_findings_is_a_failure(answer: object) -> None:
    result = look_with(lambda _, __: cast("Iterable[Finding]", answer))
    assert result.sight is Sight.FAILED


def wrong(**fields: object) -> Finding:
    whole: dict[str, object] = {
        "claim": "x",
        "severity": Severity.LOW,
        "technique": "T1014",
        "key": "k",
        "evidence": (Observation(view="v", present=True),),
    }
    return Finding(**(whole | fields))  # type: ignore[arg-type] # what a codepack without types does


@pytest.mark.parametrize(
    "bad",
    [
        lambda: wrong(claim=7),
        lambda: wrong(severity="awful"),
        lambda: wrong(claim="\ud800"),
        lambda: wrong(evidence=({"view": 1},)),
        lambda: wrong(claim="x" * MAX_FINDING_BYTES),
        lambda: wrong(evidence=(Observation(view="v", present=True, facts={"a": object()}),)),  # type: ignore[dict-item] # as above
    ],
)
def test_a_finding_that_is_not_of_its_type_is_a_failure(bad: Callable[[], Finding]) -> None:
    result = look_with(lambda _, __: [bad()])
    assert (result.sight, result.findings) == (Sight.FAILED, ())


def test_a_finding_does_not_change_after_it_was_given() -> None:
    facts: dict[str, str | int | float | bool | None] = {"pid": 1}
    given = wrong(evidence=(Observation(view="v", present=True, facts=facts),))
    [taken] = look_with(lambda _, __: [given]).findings
    facts["pid"] = 2
    assert taken.evidence[0].facts == {"pid": 1}


def test_takes_a_bounded_number_of_findings_from_a_stream_without_end() -> None:
    """A guest can bring that about, so that it is no failure, for which a codepack would be given up."""
    result = look_with(lambda _, __: (finding(str(number)) for number in count()))
    assert (result.sight, len(result.findings)) == (Sight.GAPS, MAX_FINDINGS)
    (gap,) = result.gaps
    assert (gap.structure, result.gap_count) == ("findings", 1)
    assert gap.reason == "more than 1000 in one look: others are not told"


def test_takes_exactly_the_bound_without_complaint() -> None:
    result = look_with(lambda _, __: [finding(str(number)) for number in range(MAX_FINDINGS)])
    assert (result.sight, len(result.findings)) == (Sight.FULL, MAX_FINDINGS)


def test_puts_into_words_also_an_error_that_cannot_say_what_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "Mute" in in_words(Mute())


def syntax_error(*details: object) -> SyntaxError:
    return SyntaxError("x", details)  # type: ignore[arg-type] # what a codepack without types does


class Noted(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override] # as above
        raise SystemExit


@pytest.mark.parametrize(
    "error",
    [syntax_error("file", 1, 2, 5), syntax_error("file", [], "a", "b"), Noted()],
)
def test_an_error_that_python_itself_cannot_tell_of_ends_no_look(error: Exception) -> None:
    result = look_with(raising(error))
    assert result.sight is Sight.FAILED
    assert type(error).__name__ in result.problem


def test_words_with_half_a_letter_can_be_published() -> None:
    words = in_words(ValueError("a\udc80b"))
    assert (words, words.encode()) == ("ValueError: a\\udc80b", b"ValueError: a\\udc80b")


def test_words_are_one_line_of_bounded_length() -> None:
    words = in_words(ValueError("a\nb" * 10_000))
    assert "\n" not in words
    assert len(words) <= 500


def test_an_error_of_ours_is_put_into_its_own_words() -> None:
    error = MachineGone("look")
    assert in_words(error) == str(error)


def test_of_an_error_of_others_the_class_is_said() -> None:
    assert in_words(ZeroDivisionError("by accident")) == "ZeroDivisionError: by accident"


def test_what_a_codepack_leaves_out_itself_is_a_gap_that_proves_the_rest_gone() -> None:
    result = look_with(lambda _, __: [finding("a"), Unseen(what="memory", reason="too much")])
    assert (result.sight, result.gaps) == (Sight.GAPS, (Gap("memory", None, "too much"),))
    assert (result.is_complete, result.goes_on) == (True, False)


def test_what_it_goes_on_with_proves_nothing_gone_yet() -> None:
    result = look_with(lambda _, __: [Unseen(what="memory", reason="later", goes_on=True)])
    assert (result.sight, result.is_complete, result.goes_on) == (Sight.GAPS, False, True)


def test_beside_a_gap_of_the_guest_nothing_is_proven_gone() -> None:
    guest = FakeGuest()
    guest.show_processes([], gaps=[Gap("tasks", None, "torn")])

    def inspect(seen: GuestOS, _: PhysicalMemory) -> Iterator[Finding | Unseen]:
        seen.processes()
        yield Unseen(what="memory", reason="too much")

    result = look_with(inspect, guest)
    assert (result.gap_count, result.left_out, result.is_complete) == (2, 1, False)


def test_more_of_what_was_left_out_than_fits_into_a_look_proves_nothing_gone() -> None:
    result = look_with(lambda _, __: (Unseen(what="memory", reason=f"{n}") for n in count()))
    assert (result.left_out, result.is_complete) == (MAX_FINDINGS, False)
