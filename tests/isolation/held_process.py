"""A program that runs beside a test until its block ends, or until the test's process is gone."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["ROOT", "held", "line_of"]

ROOT: Final = Path(__file__).parents[2]

END_S: Final = 30.0
"""Longest wait for a program to end by itself; one that is loaded heavily takes seconds."""


@contextmanager
def held(*command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """This starts a program that ends when its input does; one that does not is killed, and raises."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    try:
        yield process
    finally:
        stream(process.stdin).close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            stream(process.stdout).close()


def stream(one: IO[bytes] | None) -> IO[bytes]:
    assert one is not None
    return one


def line_of(process: "subprocess.Popen[bytes]") -> str:
    """This is the next line that a program prints."""
    line = stream(process.stdout).readline().decode()
    assert line, f"{process.args!r} ended"
    return line.rstrip("\n")
