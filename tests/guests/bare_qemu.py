"""A QEMU with any arguments and no operating system: it starts in a tenth of a second."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.guests.lab.errors import LabError
from tests.guests.lab.monitor import Monitor
from tests.guests.lab.newer_qemu import chosen_qemu
from tests.guests.lab.process import QemuProcess

__all__ = ["BareQemu", "bare_qemu"]

_LISTENS_S = _STOPS_S = 20.0
_POLL_S = 0.001


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


@dataclass(frozen=True, slots=True)
class BareQemu:
    """This is a running QEMU with two QMP sockets.

    Attributes:
        qmp: the path of the subject's socket.
        monitor: the test's own conversation, on the other socket.
        folder: private, gone when QEMU is.
    """

    process: QemuProcess
    monitor: Monitor
    folder: Path

    @property
    def qmp(self) -> str:
        """This is the subject's socket."""
        return str(self.folder / "qmp.sock")

    @property
    def pid(self) -> int:
        """This is QEMU's process id."""
        return self.process.pid

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """This keeps the whole process from running for the length of the block, if it lives so long."""
        handle = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            self._wait_until_stopped()
            yield
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)

    def _wait_until_stopped(self) -> None:
        """This waits for the last thread: the signal stops one after the other, and nobody is told."""
        deadline = time.monotonic() + _STOPS_S
        while not all(_is_stopped(task) for task in Path(f"/proc/{self.pid}/task").iterdir()):
            if time.monotonic() > deadline:
                raise LabError(f"QEMU {self.pid} does not stop")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """This kills QEMU and waits until it has gone."""
        self.process.end()


@contextmanager
def bare_qemu(
    *arguments: str,
    folder: Path | None = None,
    qmp: bool = True,
    program: str = "qemu-system-x86_64",
) -> Iterator[BareQemu]:
    """This starts a QEMU for the length of the block, the one that `QEMU_VARIABLE` names.

    Args:
        arguments: QEMU's, besides those that leave out the default devices.
        folder: where the sockets are, and what is removed afterwards; by default a new one.
        qmp: whether the subject's socket is made; without, `arguments` make one.
        program: which QEMU.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="qvmi-bare-"))
    sockets = ["own.sock", *(["qmp.sock"] if qmp else [])]
    served = [("-qmp", f"unix:{place / name},server=on,wait=off") for name in sockets]
    base = (program, "-nodefaults", "-no-user-config", "-display", "none")
    command = (*base, *(part for option in served for part in option), *arguments)
    process = QemuProcess.start(chosen_qemu().command(*command), place)
    try:
        deadline = time.monotonic() + _LISTENS_S
        with Monitor.over(process.connect("own.sock", deadline=deadline)) as monitor:
            yield BareQemu(process, monitor, place)
    finally:
        process.end()
