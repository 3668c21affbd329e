"""Pseudo-terminals that a program is run on, so that it takes its reader for a person."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["Terminal", "terminal"]

_DEADLINE_S: Final = 60
"""A command is done within a second; a loaded machine may be many times slower."""


class Terminal:
    """This is a program on a terminal of its own.

    Attributes:
        process: the program; its stderr is the terminal, too.
        screen: the bytes the terminal was sent until now.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.screen = b""
        self._master = master

    def type(self, keys: bytes) -> None:
        """This types; byte 3 is Ctrl-C."""
        os.write(self._master, keys)

    def wait_for(self, text: bytes) -> None:
        """This reads until the terminal was sent a text, or raises TimeoutError."""
        deadline = time.monotonic() + _DEADLINE_S
        while text not in self.screen:
            if time.monotonic() > deadline or not self._read(deadline):
                raise TimeoutError(f"the terminal was never sent {text!r}: {self.screen!r}")

    def end(self) -> int:
        """This reads all that is left and gives the program's exit code."""
        deadline = time.monotonic() + _DEADLINE_S
        while self._read(deadline):
            pass
        return self.process.wait(_DEADLINE_S)

    def _read(self, deadline: float) -> bool:
        """This reads what there is, and tells whether there may be more."""
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        try:
            found = os.read(self._master, 1 << 16) if ready else b""
        except OSError:  # EIO: the program has closed its side
            return False
        self.screen += found
        return bool(found)


def _as_from_a_shell() -> None:
    """This makes the terminal the one that Ctrl-C comes from, and lets it be heard.

    Whoever runs the tests in the background of a script has it ignored, which children inherit.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    columns: int = 100,
) -> Iterator[Terminal]:
    """This runs a program on a terminal; with the block it is ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=_as_from_a_shell,  # noqa: PLW1509 - no threads here
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait(_DEADLINE_S)
        os.close(master)
