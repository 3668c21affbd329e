"""On a terminal tables are drawn, and a guest's names draw nothing."""

import io

import pytest
from rich.cells import cell_len
from rich.text import Text

from qvmi.cli.printing.table import Column, Table, table_of
from qvmi.cli.printing.terminal import drawn
from tests.unit.cli.corpus import ALIGNED

COLUMNS = (
    Column[str]("NO", lambda _: "1", right=True),
    Column[str]("NAME", lambda text: text),
    Column[str]("END", lambda _: "|"),
)


class FakeTerminal(io.StringIO):
    """This takes colours, as a terminal does."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_wide_colour_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")


def screen(table: Table) -> list[str]:
    """These are the lines that are seen, without colours."""
    text = drawn(table, FakeTerminal())
    assert "\x1b[1m" in text
    return Text.from_ansi(text).plain.splitlines()


def test_shows_titles_and_rows() -> None:
    lines = screen(table_of(COLUMNS, ["init"]))
    assert lines[0].split() == ["NO", "NAME", "END"]
    assert lines[-1].split() == ["1", "init", "|"]


@pytest.mark.parametrize("prose", [False, True])
@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", ":smile:", "[link=file:///]x", "\\[b]"])
def test_markup_in_a_name_is_text(name: str, *, prose: bool) -> None:
    assert name in screen(table_of(COLUMNS, [name], prose=prose))[-1]


@pytest.mark.parametrize("prose", [False, True])
def test_the_only_controls_are_the_program_s_own(*, prose: bool) -> None:
    text = drawn(table_of(COLUMNS, ALIGNED, prose=prose), FakeTerminal())
    plain = Text.from_ansi(text).plain
    assert all(line.isprintable() for line in plain.split("\n"))


def test_a_hostile_name_moves_no_column() -> None:
    lines = screen(table_of(COLUMNS, ALIGNED))[1:]
    assert len(lines) == len(ALIGNED)
    assert len({cell_len(line[: line.index("|")]) for line in lines}) == 1


LONG = "".join(chr(code) for code in range(0x21, 0x7C)) * 3


def test_prose_that_is_too_wide_is_folded_and_not_cut() -> None:
    lines = screen(table_of(COLUMNS, [LONG], prose=True))[2:]
    assert len(lines) > 3
    assert "".join(line[5:].rstrip(" |") for line in lines) == LONG


def test_what_may_be_copied_stays_in_one_piece() -> None:
    assert LONG in screen(table_of(COLUMNS, [LONG]))[-1]


def test_indentation_is_kept() -> None:
    assert "   └─ sh" in screen(table_of(COLUMNS, ["   └─ sh"]))[-1]


def test_a_table_of_nothing_has_its_titles() -> None:
    assert [line.split() for line in screen(table_of(COLUMNS, []))] == [["NO", "NAME", "END"]]


def test_a_table_without_titles_has_no_line_for_them() -> None:
    columns = (Column[str]("", str), Column[str]("", str.upper))
    table = table_of(columns, ["a", "b"])
    plain = Text.from_ansi(drawn(table, FakeTerminal())).plain
    assert [line.split() for line in plain.splitlines()] == [["a", "A"], ["b", "B"]]
