"""Tables keep their columns, whatever is in them."""

import pytest
from rich.cells import cell_len

from qvmi.cli.printing.table import Column, plain_lines, table_of
from tests.unit.cli.corpus import ALIGNED

NUMBERED = (
    Column[tuple[int, str]]("NO", lambda row: str(row[0]), right=True),
    Column[tuple[int, str]]("NAME", lambda row: row[1]),
    Column[tuple[int, str]]("END", lambda _: "|"),
)


def test_aligns_numbers_to_the_right_and_text_to_the_left() -> None:
    lines = plain_lines(table_of(NUMBERED, [(7, "init"), (1234, "x")]))
    assert list(lines) == [
        "  NO  NAME  END",
        "   7  init  |",
        "1234  x     |",
    ]


def test_leaves_no_spaces_at_the_end_of_a_line() -> None:
    columns = (Column[str]("NAME", str), Column[str]("WHY", lambda _: ""))
    assert list(plain_lines(table_of(columns, ["a"]))) == ["NAME  WHY", "a"]


def test_a_table_of_nothing_has_its_titles() -> None:
    assert list(plain_lines(table_of(NUMBERED, []))) == ["NO  NAME  END"]


def test_a_table_without_titles_has_only_its_rows() -> None:
    columns = (Column[str]("", str), Column[str]("", str.upper))
    assert list(plain_lines(table_of(columns, ["a"]))) == ["a  A"]


def test_a_hostile_name_moves_no_column() -> None:
    lines = list(plain_lines(table_of(NUMBERED, enumerate(ALIGNED))))
    assert len(lines) == len(ALIGNED) + 1
    assert {cell_len(line[: line.rindex("|")]) for line in lines[1:]} == {lines[0].index("END")}


@pytest.mark.parametrize("text", ALIGNED, ids=ascii)
def test_every_row_is_one_line(text: str) -> None:
    (_, line) = plain_lines(table_of(NUMBERED, [(1, text)]))
    assert line.splitlines() == [line]
