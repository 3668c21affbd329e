"""A process beside this one that lets the guest run on if this one is killed while it is paused.

It holds a duplicate of the QMP connection. So the session outlives this process: no other client,
even one that waits in the socket's queue, gets in between, and nothing has to be found again.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from qvmi.errors import PauseError
from qvmi.machine.worker import in_worker

__all__ = ["Guardian", "start_guardian"]

_PROGRAM: Final = Path(__file__).with_name("guardian_process.py")
_ENDS_S: Final = 5.0
"""How long it may take to end after it was told to; it needs milliseconds."""


class Guardian:
    """This guards one machine. Only :meth:`start` makes one.

    What it is told is in the kernel's hands at once: it is heard though this process dies right
    after.

    Attributes:
        stopped: whether it was told that the machine may stand still because of us.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self.stopped = False

    @classmethod
    def start(cls, monitor: int | None, command: Sequence[str] = ()) -> "Guardian":
        """This starts the process, which takes some 15 ms that nobody has to wait for.

        Args:
            monitor: the descriptor of the QMP connection, which is duplicated.
            command: where there is no such connection, the command line that sends ``cont``.

        Raises:
            PauseError: it cannot be started, so nothing may be stopped.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
                    [sys.executable, "-I", "-S", _PROGRAM, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for us, who then let the guest run on
                    cwd="/",
                )
            guardian = cls(process, ours)
            guardian._tell({"command": list(command)}, [] if monitor is None else [monitor])
        except OSError as error:
            ours.close()
            raise PauseError(f"the guardian process cannot be started: {error}") from error
        return guardian

    def note_stopped(self, *, stopped: bool) -> None:
        """This tells that the machine may stand still because of us from now on, or does no more.

        Raises:
            PauseError: the guardian is gone, so nothing may be stopped.
        """
        try:
            self._tell({"stopped": stopped})
        except OSError as error:
            raise PauseError("the guardian process is gone (was it killed?)") from error
        self.stopped = stopped

    def note_folder(self, folder: Path | None) -> None:
        """This tells of a gdbstub that is started for us, which is to be ended if we cannot.

        Raises:
            PauseError: the guardian is gone.
        """
        try:
            self._tell({"folder": "" if folder is None else str(folder)})
        except OSError as error:
            raise PauseError("the guardian process is gone (was it killed?)") from error

    def hold_stub(self, stub: int, detach: str, folder: Path | None) -> None:
        """This hands over a connection to the gdbstub, which is duplicated.

        Args:
            stub: its descriptor.
            detach: the packet that lets go of it.
            folder: of a stub that was started for us, to be removed with it.

        Raises:
            PauseError: the guardian is gone.
        """
        known = {"is_stub": True, "detach": detach, "folder": "" if folder is None else str(folder)}
        try:
            self._tell(known, [stub])
        except OSError as error:
            raise PauseError("the guardian process is gone (was it killed?)") from error

    def leave_stub(self) -> None:
        """This takes the connection to the gdbstub back, before it is let go of.

        QEMU 7.2 crashes if it is asked anything behind the packet that lets go of it.
        """
        with suppress(OSError):
            self._tell({"stub_left": True})

    def drop_stub(self) -> None:
        """This tells that the gdbstub was let go of; a guardian that is gone needs not know."""
        with suppress(OSError):
            self._tell({"stub_left": True, "folder": ""})

    def keep(self, folder: Path) -> None:
        """This tells of a folder that must not outlive this process; a guardian that is gone cannot help."""
        with suppress(OSError):
            self._tell({"keep": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """This tells that such a folder has gone."""
        with suppress(OSError):
            self._tell({"forget": [str(folder)]})

    def note_added(self, name: str) -> None:
        """This tells of an object of QEMU's that must not outlive this process.

        Raises:
            PauseError: the guardian is gone.
        """
        try:
            self._tell({"added": [name]})
        except OSError as error:
            raise PauseError("the guardian process is gone (was it killed?)") from error

    def note_removed(self, name: str) -> None:
        """This tells that such an object has gone; a guardian that is gone needs not know."""
        with suppress(OSError):
            self._tell({"removed": [name]})

    @property
    def alive(self) -> bool:
        """This tells whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """This ends the guardian, which has nothing left to do."""
        with suppress(OSError):
            self._tell({"ended": True})
        self._channel.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_S)

    def leave(self) -> None:
        """This leaves the machine to the guardian, which ends when it has made it run."""
        self._channel.close()
        # Nobody waits for it, and it may well outlive this process.
        self._process.returncode = 0

    def _tell(self, message: dict[str, object], descriptors: Sequence[int] = ()) -> None:
        encoded = json.dumps(message).encode()
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        socket.send_fds(self._channel, [encoded], list(descriptors), flags)


async def start_guardian(monitor: int | None, command: Sequence[str] = ()) -> Guardian:
    """This starts a guardian in a thread; of one that nobody waits for any more nothing is left.

    Args:
        monitor: as :meth:`Guardian.start` takes it; it stays open until this returns or raises.
        command: likewise.

    Raises:
        PauseError: it cannot be started, so nothing may be stopped.
    """
    started: list[Guardian] = []
    try:
        await in_worker(lambda: started.append(Guardian.start(monitor, command)))
    except BaseException:
        for guardian in started:
            guardian.close()
        raise
    return started[0]
