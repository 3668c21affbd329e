"""All registers are shown, whatever the architecture."""

from inspect import get_annotations
from itertools import chain

from qvmi.arch import aarch64, x86_64
from qvmi.cli.handlers.registers import AARCH64_LINES, X86_64_LINES


def test_every_register_of_x86_64_is_shown_exactly_once() -> None:
    names = get_annotations(x86_64.Registers).keys() - {"index"}
    assert sorted(chain.from_iterable(X86_64_LINES)) == sorted(names)


def test_every_register_of_aarch64_is_shown_exactly_once() -> None:
    names = get_annotations(aarch64.Registers).keys() - {"index", "x"}
    general = {f"x{number}" for number in range(31)}
    assert sorted(chain.from_iterable(AARCH64_LINES)) == sorted(names | general)
