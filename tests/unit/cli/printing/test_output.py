"""Results go to stdout, messages to stderr, and neither does anything to a terminal."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.cli.printing.output import Output, ReaderGone
from qvmi.errors import UsageError
from tests.unit.cli.corpus import ALIGNED
from tests.unit.cli.streams import Captured


@pytest.fixture
def nobody_reads() -> Iterator[Output]:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        output = Output(stream, stream)
        yield output
        output.drop()


@given(st.text())
def test_json_is_one_line_of_printable_ascii_that_reads_back(text: str) -> None:
    output = Captured()
    output.document({"name": text})
    line = output.result.removesuffix("\n")
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"name": text}


@pytest.mark.parametrize("text", ALIGNED, ids=ascii)
def test_a_line_stays_one_line(text: str) -> None:
    output = Captured()
    output.line(text)
    assert output.result.removesuffix("\n").isprintable()


def test_a_message_goes_to_stderr_alone_with_its_details_below() -> None:
    output = Captured()
    output.message("first\nsecond", ["third \x1b[2J"])
    assert output.result == ""
    assert output.messages == "qvmi: first\n  second\n  third \\x1b[2J\n"


def test_a_guest_cannot_make_a_message_look_like_another() -> None:
    output = Captured()
    output.message("bad name 'x\rqvmi: all is well'")
    assert [line.startswith("qvmi: ") for line in output.messages.splitlines()] == [True, False]


def test_what_an_encoding_lacks_is_escaped() -> None:
    output = Captured(encoding="latin-1")
    output.line("naïve 进程")
    assert output.result == "naïve \\u8fdb\\u7a0b\n"


def test_knows_what_an_encoding_has() -> None:
    assert Captured(encoding="utf-8").can_show("├─")
    assert not Captured(encoding="ascii").can_show("├─")


def test_raw_bytes_come_in_turn() -> None:
    output = Captured()
    output.line("before")
    output.raw(b"\x00\xff")
    assert output.raw_result == b"before\n\x00\xff"


def test_says_when_nobody_reads_any_more(nobody_reads: Output) -> None:
    nobody_reads.line("hello")
    with pytest.raises(ReaderGone):
        nobody_reads.flush()


def test_a_message_that_nobody_reads_is_no_error(nobody_reads: Output) -> None:
    nobody_reads.message("hello")


def test_a_full_disk_is_an_error_that_says_so() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        output = Output(full, full)
        output.line("hello")
        with pytest.raises(UsageError, match="No space left"):
            output.flush()
        output.drop()
