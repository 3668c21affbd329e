"""Running a person's own drgn code on a program: as text, as a script, or line by line.

References: drgn's ``drgn.cli`` ("Functions for embedding the drgn CLI").
"""

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import drgn
from drgn.cli import default_globals, run_interactive

from qvmi.semantics.drgn_bridge.program import Program

__all__ = ["interact", "run_code", "run_script"]


def run_code(program: Program, code: str, name: str) -> None:
    """This runs Python code that finds ``prog`` and drgn's helpers, as drgn's own command does.

    Args:
        program: that it is about.
        code: the text.
        name: what a traceback calls it.
    """
    with _default(program, [name]):
        exec(compile(code, name, "exec"), default_globals(program))  # noqa: S102 - its purpose


def run_script(program: Program, path: str, arguments: Sequence[str]) -> None:
    """This runs a script of drgn's, with its arguments in ``sys.argv``."""
    with _default(program, [path, *arguments]):
        runpy.run_path(path, init_globals={"prog": program}, run_name="__main__")


def interact(program: Program) -> None:
    """This runs what is typed, line by line, until the end of input."""
    run_interactive(program)


@contextmanager
def _default(program: Program, arguments: list[str]) -> Iterator[None]:
    """This makes a program the one that helpers mean, and puts back what was."""
    before = sys.argv
    drgn.set_default_prog(program)
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before
        drgn.set_default_prog(None)
