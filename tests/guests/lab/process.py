"""A QEMU process under the eyes of its keeper, which ends it when this process is gone."""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.guests.lab.errors import LabError

__all__ = ["QemuProcess"]

KEEPER = Path(__file__).with_name("keeper.py")
POLL_SECONDS = 0.002
END_SECONDS = 30.0
"""A killed process that is not gone by then hangs in the kernel."""


@dataclass(slots=True)
class QemuProcess:
    """This is QEMU, its private folder and its keeper.

    Attributes:
        pid: QEMU's own.
    """

    keeper: "subprocess.Popen[bytes]"
    folder: Path
    pid: int

    @classmethod
    def start(cls, arguments: tuple[str, ...], folder: Path) -> Self:
        """This starts QEMU; that it has started does not mean that it listens yet."""
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", KEEPER, folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for the test, which then ends QEMU
        )
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        keeper.stdout.close()
        if not said:
            raise LabError("QEMU's keeper did not start", fix="run it by hand: " + str(KEEPER))
        return cls(keeper, folder, int(said))

    def connect(self, name: str, *, deadline: float) -> socket.socket:
        """This connects to a socket in QEMU's folder as soon as QEMU listens on it.

        Raises:
            LabError: QEMU ended first, or the deadline (of time.monotonic) passed.
        """
        path = str(self.folder / name)
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                stream.connect(path)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                stream.close()
                # A socket's appearance can only be polled for.
                if self.wait_for_end(POLL_SECONDS) or time.monotonic() > deadline:
                    raise LabError(f"QEMU does not listen on {path}") from error
            else:
                return stream

    def log(self) -> str:
        """This is what QEMU said on its standard output and error."""
        return (self.folder / "qemu.log").read_text(errors="replace")

    def wait_for_end(self, seconds: float) -> bool:
        """Tell whether QEMU ended by itself within that time."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(handle)

    def end(self) -> int:
        """This kills QEMU unless it has ended, removes its folder, and is its exit status."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        status = self.keeper.wait(END_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)  # were it only the keeper that was killed
        return status
