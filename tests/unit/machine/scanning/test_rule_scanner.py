"""Rules that are compiled once scan bytes again and again: bounded in hits and time, whatever they are."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from qvmi.errors import UsageError
from qvmi.machine.scanning.rule_scanner import (
    HITS_TOLD,
    SHOWN_BYTES,
    RuleFacts,
    RuleScanner,
    compiled_rules,
)
from qvmi.machine.scanning.scan_rules import ScanRules

NEEDLE: Final = """
rule needle : first second {
  meta:
    author = "nobody"
    score = 3
    raw = "\\xff"
  strings:
    $it = "needle"
    $long = /y{300,400}z/
  condition:
    any of them
}
"""
PATIENCE_S: Final = 60
NOBODY: Final = 65534
"""However slow the host is, no rule but the slow one takes so long."""
SLOW: Final = """
rule slow {
  strings: $a = "none"
  condition: $a or for all i in (0..1000000000000) : (uint8(i % 4096) < 256)
}
"""


@contextmanager
def scanner(text: str, *, window_s: int = PATIENCE_S) -> Iterator[RuleScanner]:
    compiled = compiled_rules(ScanRules.of(text))
    made = RuleScanner(compiled, window_s=window_s)
    try:
        yield made
    finally:
        made.close()
        os.close(compiled)


def children() -> set[int]:
    """These are the processes that this one has started and that are there, by the kernel's word."""
    me = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}


def test_tells_where_in_its_own_part_a_rule_matches_and_what_is_there() -> None:
    with scanner(NEEDLE) as it:
        answer = it.scan([b"needle..", 4096, b"needle!", b"needle"], skip=8, own=4096 + 7)
    assert [(one.offset, one.rule, one.pattern, one.length) for one in answer.hits] == [
        (4096, "needle", "$it", 6)
    ]
    assert (bytes.fromhex(answer.hits[0].data), answer.problem) == (b"needle", "")


def test_rules_say_of_themselves_what_their_author_wrote() -> None:
    with scanner(NEEDLE) as it:
        it.scan([b"x"], skip=0, own=1)
        meta = (("author", "nobody"), ("score", 3), ("raw", "\\xff"))
        assert it.rules == {"needle": RuleFacts("needle", ("first", "second"), meta)}


def test_of_a_hundred_thousand_matches_a_few_are_told_in_every_window() -> None:
    with scanner(NEEDLE) as it:
        for _ in range(2):
            answer = it.scan([b"needle" * 100_000], skip=0, own=600_000)
            assert [one.offset for one in answer.hits] == [6 * n for n in range(HITS_TOLD)]
            assert answer.cut == ("needle",)


def test_of_a_long_match_the_beginning_is_told() -> None:
    with scanner(NEEDLE) as it:
        (hit,) = it.scan([b"y" * 300 + b"z"], skip=0, own=1).hits
    assert (hit.length, bytes.fromhex(hit.data)) == (301, b"y" * SHOWN_BYTES)


def test_a_rule_that_takes_too_long_is_told_and_the_next_window_is_scanned() -> None:
    with scanner(NEEDLE + SLOW, window_s=1) as it:
        assert "took too long" in it.scan([bytes(4096)], skip=0, own=4096).problem
        while not (answer := it.scan([b"needle"], skip=0, own=6)).hits:
            assert "took too long" in answer.problem  # on a host that lets nobody run


def test_a_process_that_was_killed_is_told_and_replaced() -> None:
    with scanner(NEEDLE) as it:
        before = children()
        it.scan([b"x"], skip=0, own=1)
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert "has ended" in it.scan([b"needle"], skip=0, own=6).problem
        assert it.scan([b"needle"], skip=0, own=6).hits


def test_the_process_ends_with_whoever_scans() -> None:
    before = children()
    compiled = compiled_rules(ScanRules.of(NEEDLE))
    it = RuleScanner(compiled)
    it.scan([b"x"], skip=0, own=1)
    (pid,) = children() - before
    del it
    gc.collect()
    os.close(compiled)
    assert pid not in children()


def test_what_was_compiled_cannot_be_changed() -> None:
    compiled = compiled_rules(ScanRules.of(NEEDLE))
    try:
        with pytest.raises(PermissionError):
            os.pwrite(compiled, b"x", 0)
    finally:
        os.close(compiled)


def test_rules_of_a_folder_that_are_wrong_are_told_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "good.yar").write_text(NEEDLE)
    (tmp_path / "bad.yara").write_text("rule bad {\n  condition: $nothing\n}\n")
    with pytest.raises(UsageError, match=r"bad\.yara:2:14"):
        compiled_rules(ScanRules.of_places([tmp_path]))


def test_a_folder_stands_for_all_files_of_rules_in_it_and_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.yar", "below/a.yara", "README.md"):
        (tmp_path / name).write_text(name)
    sources = ScanRules.of_places([tmp_path, tmp_path / "README.md"]).sources
    assert [one.text for one in sources] == ["b.yar", "below/a.yara", "README.md"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no file that ends in .yar"),
        ("nowhere", "No such file"),
        ("pipe", "pipe is a pipe and no file of rules: name another one"),
        ("~nobody of that name", "home directory"),
    ],
)
def test_a_folder_without_rules_or_none_at_all_is_told(
    tmp_path: Path, name: str, words: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=words):
        ScanRules.of_places([Path(name) if name.startswith("~") else tmp_path / name])


@contextmanager
def unprivileged() -> Iterator[None]:
    """This has files be looked at as somebody would whom none of them is."""
    ours = os.geteuid()
    if ours == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(ours)


def test_a_folder_of_rules_that_cannot_be_looked_into_is_told() -> None:
    with TemporaryDirectory(prefix="qvmi-") as name:
        folder = Path(name)
        (folder / "seen.yar").write_text(NEEDLE)
        (folder / "closed").mkdir(0)
        folder.chmod(0o755)
        with unprivileged(), pytest.raises(UsageError, match=r"closed: Permission denied"):
            ScanRules.of_places([folder])
