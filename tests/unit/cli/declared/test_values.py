"""Values are checked before anything is attached to."""

import os
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from qvmi.cli.declared import values
from qvmi.cli.declared.values import Place
from qvmi.manager.packs_here import MIN_INTERVAL_S


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0x1000", Place("", 0x1000)),
        ("0XfF", Place("", 0xFF)),
        ("4096", Place("", 4096)),
        ("ffffffff81000000", Place("", 0xFFFF_FFFF_8100_0000)),
        ("init_task", Place("init_task", 0)),
        ("init_task+16", Place("init_task", 16)),
        ("init_task+0x10", Place("init_task", 0x10)),
        ("deadbeef", Place("deadbeef", 0)),
        ("__ksymtab.cold.0", Place("__ksymtab.cold.0", 0)),
    ],
)
def test_reads_a_place(text: str, place: Place) -> None:
    assert values.place(text) == place


@pytest.mark.parametrize("text", ["", "a b", "a+", "a+b", "+5", "0x1" + 16 * "0", "a\n"])
def test_refuses_what_is_no_place(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        values.place(text)


@pytest.mark.parametrize("text", ["0x10", "init_task", "init_task+0x10"])
def test_a_place_is_shown_as_it_can_be_typed(text: str) -> None:
    assert str(values.place(text)) == text


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("0x40", 64), ("4K", 4096), ("2M", 2 << 20), ("1G", 1 << 30)]
)
def test_reads_a_size(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4k", "4KiB", "1.5M", "x", "99999999999G"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        values.size(text)


@pytest.mark.parametrize("text", ["", "-1", "one", "1.0", str(1 << 64), "\u0663"])
def test_refuses_what_counts_nothing(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        values.count(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            (text, "is no number of seconds above 0")
            for text in ("", "0", "-1", "nan", "-inf", "soon")
        ),
        *(
            (text, "is too long: give 31622400 seconds at most")
            for text in ("inf", "1e99", "31622401")
        ),
    ],
)
def test_says_why_a_time_cannot_be_waited_for(text: str, why: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^'{text}' {why}$"):
        values.seconds(text)


def test_an_interval_is_as_short_as_codepacks_take_it_and_no_shorter() -> None:
    assert values.interval(str(MIN_INTERVAL_S)) == MIN_INTERVAL_S
    with pytest.raises(
        ArgumentTypeError, match=r"'0\.0009' is too short: give 0\.001 seconds or more"
    ):
        values.interval("0.0009")


def test_reads_fractions_of_a_second() -> None:
    assert values.seconds("0.25") == 0.25


def test_a_file_can_be_new_replaced_or_a_device(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("as it was")
    for name in (tmp_path / "new", tmp_path / "old", "/dev/null"):
        assert values.new_file(str(name)) == str(name)
    assert [one.name for one in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "as it was"


def test_a_pipe_is_not_opened_until_there_is_something_to_write(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert values.new_file(str(pipe)) == str(pipe)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "names nothing"),
        ("missing/file", "No such file"),
        ("file/below", "Not a directory"),
        (".", "is a folder"),
        ("folder", "is a folder"),
        ("loop", "loop"),
        ("nul\0", "null"),
        ("n" * 300, "too long"),
        ("/proc/new", "cannot write"),
    ],
)
def test_refuses_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArgumentTypeError, match=why):
        values.new_file(name)
