"""What is looked for is taken as it was meant, or refused with the reason."""

from pathlib import Path

import pytest
import yara_x

from qvmi.errors import UsageError
from qvmi.machine.scanning.scan_rules import RuleSource, ScanRules


def matched(rules: ScanRules, data: bytes) -> list[tuple[str, str, int, int]]:
    """This is what YARA-X finds by them."""
    return [
        (rule.identifier, pattern.identifier, match.offset, match.length)
        for source in rules.sources
        for rule in yara_x.compile(source.text).scan(data).matching_rules
        for pattern in rule.patterns
        for match in pattern.matches
    ]


@pytest.mark.parametrize("text", ["a", 'quote " back \\ brace } /* x', "ümlaut", "\0\n", "{ 41 }"])
def test_a_string_is_looked_for_as_it_is(text: str) -> None:
    data = b"..." + text.encode() + b"..."
    rules = ScanRules.of_patterns([text])
    assert matched(rules, data) == [("string", "$1", 3, len(text.encode()))]


def test_bytes_are_looked_for_as_yara_writes_them() -> None:
    rules = ScanRules.of_patterns(["xy"], ["DE AD ?? EF", "(01|02) [2-3] 04"])
    data = b"\xde\xad\xbe\xef xy \x02..\x04"
    assert matched(rules, data) == [
        ("string", "$1", 5, 2),
        ("hex", "$1", 0, 4),
        ("hex", "$2", 8, 4),
    ]


@pytest.mark.parametrize("digits", ["", "41 } condition: true", "nothing", "/x/", '"x"', "41;"])
def test_what_is_no_pattern_of_bytes_is_refused(digits: str) -> None:
    with pytest.raises(UsageError, match="no pattern of bytes"):
        ScanRules.of_patterns([], [digits])


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(UsageError, match="everywhere"):
        ScanRules.of_patterns([""])


def test_nothing_to_look_for_is_refused() -> None:
    with pytest.raises(UsageError, match="scan for what"):
        ScanRules(())


def test_a_file_of_rules_may_include_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "rules.yar"
    path.write_text("rule x { condition: true }")
    assert ScanRules.of(path).sources == (
        RuleSource("rule x { condition: true }", str(path), str(tmp_path)),
    )


def test_rules_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules.yar"
    with pytest.raises(UsageError, match="No such file"):
        ScanRules.of_files([path])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no UTF-8"):
        ScanRules.of_files([path])


def test_rules_are_added_up() -> None:
    both = ScanRules.of("rule a { condition: true }") + ScanRules.of_patterns(["b"])
    assert [source.origin for source in both.sources] == ["rules", "--string"]
