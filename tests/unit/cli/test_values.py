"""Values are checked before anything is attached to."""

from argparse import ArgumentTypeError

import pytest

from qvmi.cli import values
from qvmi.cli.values import Place


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


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e99", "soon"])
def test_refuses_what_cannot_be_waited_for(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        values.seconds(text)


def test_reads_fractions_of_a_second() -> None:
    assert values.seconds("0.25") == 0.25
