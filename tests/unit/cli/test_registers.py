"""All registers are shown."""

from inspect import get_annotations
from itertools import chain

from qvmi.arch.x86_64 import Registers
from qvmi.cli.registers import LINES


def test_every_register_is_shown_exactly_once() -> None:
    names = get_annotations(Registers).keys() - {"index"}
    shown = list(chain.from_iterable(LINES))
    assert sorted(shown) == sorted(names)
