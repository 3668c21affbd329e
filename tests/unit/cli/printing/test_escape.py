"""What a guest says reaches a terminal as letters, or as the codes of what it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qvmi.cli.printing.escape import escaped, width
from tests.unit.cli.corpus import ALIGNED, HARMLESS, NASTY

# Letters, and what means something to terminals or to text layout, all equally likely.
CONTROLS = st.sampled_from([chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))])
TEXT = st.text(st.one_of(st.characters(), CONTROLS, st.sampled_from("".join(NASTY))))


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_shows_what_it_escapes_as_a_code(text: str) -> None:
    assert escaped(text) == NASTY[text]


@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_leaves_readable_text_alone(text: str) -> None:
    assert escaped(text) == text


@given(TEXT)
def test_everything_shown_is_printable(text: str) -> None:
    assert escaped(text).isprintable()


@given(TEXT)
def test_escaping_twice_changes_nothing(text: str) -> None:
    assert escaped(escaped(text)) == escaped(text)


@given(TEXT)
def test_a_terminal_is_sent_no_control(text: str) -> None:
    sent = escaped(text).encode("utf-8")
    assert min(sent, default=0x20) >= 0x20
    assert b"\x7f" not in sent
    # C1 controls, as UTF-8.
    assert not any(bytes((0xC2, code)) in sent for code in range(0x80, 0xA0))


@pytest.mark.parametrize("text", ALIGNED, ids=ascii)
def test_is_as_wide_as_a_terminal_library_says(text: str) -> None:
    assert width(escaped(text)) == cell_len(escaped(text))
