"""The guardian's own process: it waits for the end of the program it guards, and then makes good.

A program that is stopped (Ctrl-Z, SIGSTOP) may never come back. A guest that stands still for it is let
run after a while, and the program hears so from QEMU when it goes on.

Run as ``python -I -S guardian_process.py CHANNEL``; it needs nothing but the standard library, since
it has to work whatever became of the rest. See :mod:`qvmi.machine.holding.guardian`, which starts it.

References: GDB manual, "Remote Protocol"; QEMU ``docs/interop/qmp-spec.rst`` and ``qobject/json-lexer.c``,
in which the byte 0xFF, which no UTF-8 has, ends whatever was begun; Linux unix(7) SCM_RIGHTS,
pidfd_open(2), proc_pid_stat(5).
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

MAX_MESSAGE: Final = 4096
"""Bytes of a message to the guardian; the longest is the command line that asks libvirt."""
RESCUE_S: Final = 24 * 3600.0
"""How long a QEMU may be frozen that is to let its guest run; to wait for it costs next to nothing."""
COMMAND_S: Final = 30.0
"""How long one try of the command may take that stands in for a connection to the monitor."""
COMMAND_TRIES: Final = 60
COMMAND_PAUSE_S: Final = 5.0
"""It fails while QEMU does not answer, but also when QEMU has ended: some minutes must do."""
LOOK_S: Final = 0.5
"""While the guest stands still, so often is looked whether the program is stopped."""
LOOKS: Final = 10
"""Found stopped so many times in a row, five seconds, the program may never come back."""
BESIDE_S: Final = 5.0
"""How long QEMU may take for an answer that is looked for among those to a stopped program."""
BESIDE_POLL_S: Final = 0.01
MAX_PEEK: Final = 1 << 20
"""More bytes than the kernel holds back for a Unix or loopback connection that nobody reads."""
MAX_WAITING: Final = 64 << 20
"""Bytes of answers to the dead program that are thrown away before QEMU counts as broken."""
CHUNK: Final = 1 << 16
NEVER_UTF8: Final = b"\xff"
STUB_S: Final = 5.0
"""How long the gdbstub may take for each answer."""
INTERRUPT: Final = b"\x03"
END_OF_HALF_A_REQUEST: Final = b"+#00#00"
STOPPED: Final = frozenset({"paused", "debug", "prelaunch"})
"""The states that ``cont`` leads out of, of those that a ``stop`` leads to, be it with a reset behind."""


class Charge:
    """What the guardian was told: who was stopped, and how to let it run on.

    Attributes:
        monitor: a duplicate of the program's QMP connection, if it has one.
        stub: a duplicate of its connection to the gdbstub, while it has one.
        command: what lets the machine run on where there is no connection to the monitor.
        detach: the packet that lets go of the gdbstub.
        folder: of a gdbstub that was started for the program; empty where there is none.
        scratch: folders of the program's that are to go with it.
        objects: ids of objects of QEMU's that it has added, which are to go with it.
        stopped: whether the machine may stand still because of the program.
        ended: whether the program has said good-bye.
    """

    def __init__(self) -> None:
        self.monitor: socket.socket | None = None
        self.stub: socket.socket | None = None
        self.command: list[str] = []
        self.detach = "D"
        self.folder = ""
        self.scratch: set[str] = set()
        self.objects: set[str] = set()
        self.stopped = False
        self.ended = False

    def note(self, message: bytes, descriptors: list[int]) -> None:
        """This takes in one message, in the form that `guardian.py` sends."""
        told = json.loads(message)
        self.stopped = told.get("stopped", self.stopped)
        self.command = told.get("command", self.command)
        self.detach = told.get("detach", self.detach)
        self.folder = told.get("folder", self.folder)
        self.scratch |= set(told.get("keep", ()))
        self.scratch -= set(told.get("forget", ()))
        self.objects |= set(told.get("added", ()))
        self.objects -= set(told.get("removed", ()))
        self.ended = told.get("ended", self.ended)
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            if told.get("is_stub"):
                self.stub = connection
            else:
                self.monitor = connection
        if told.get("stub_left") and self.stub is not None:
            self.stub.close()
            self.stub = None


def guard(channel: socket.socket) -> Charge:
    """This listens until the program has ended, or has said that all is well."""
    charge = Charge()
    program = peer(channel)
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    # A child that the program has forked may hold the channel open for longer than it lives. Where
    # it has ended already, so has its end of the channel, or the next message is the last.
    with suppress(ProcessLookupError):
        waiting.register(os.pidfd_open(program), select.POLLIN)
    looks = 0
    while not charge.ended:
        ready = [found for found, _ in waiting.poll(LOOK_S * 1000 if charge.stopped else None)]
        if channel.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
            if not message:
                break
            charge.note(message, descriptors)
        elif ready:
            break
        looks = looks + 1 if charge.stopped and is_stopped(program) else 0
        if looks == LOOKS:
            looks = 0
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                relieve(charge)
    return charge


def peer(channel: socket.socket) -> int:
    """This is the program's process id."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


def is_stopped(pid: int) -> bool:
    """This tells whether a process was stopped by a signal; not by a debugger, who looks at it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs 10 ms
            return file.read().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False


def make_good(charge: Charge) -> None:
    """This lets the machine run on if it stands still because of the program that is no more."""
    for folder in charge.scratch:
        shutil.rmtree(folder, ignore_errors=True)
    if not (charge.stopped or charge.stub or charge.folder or charge.objects):
        return
    try:
        if charge.monitor is None:
            let_go_of_stub(charge)
            run_command(charge)
            return
        monitor = charge.monitor
        # The dead program may have been in the midst of a command; QEMU may be frozen.
        answers = begin(monitor, NEVER_UTF8)
        let_go_of_stub(charge)
        if charge.folder:
            # QEMU may see only now that the dead program has connected to it, which stops the guest.
            end_stub(monitor, answers)
        if charge.stopped:
            cont(monitor, answers)
        for name in sorted(charge.objects):
            monitor.sendall(request("object-del", {"id": name}))
            answer("object-del", answers)
    finally:
        if charge.folder:
            shutil.rmtree(charge.folder, ignore_errors=True)


def relieve(charge: Charge) -> None:
    """This lets the machine run on though the program is there: it is stopped.

    What QEMU says is for the program to read when it goes on, so that it hears of this, and so that
    its own answers are all there. The gdbstub has but one debugger: that session has ended for it.
    """
    if charge.stub is not None:
        shared = charge.stub.dup()
        let_go_of_stub(charge)
        shared.shutdown(socket.SHUT_RDWR)
        shared.close()
        charge.stub = None
    if charge.monitor is None:
        run_command(charge, tries=1)
    elif not cont_beside(charge.monitor):
        return
    charge.stopped = False


def let_go_of_stub(charge: Charge) -> None:
    """This leaves the gdbstub, where there is one; a guest that was not stopped for us stays so."""
    if charge.stub is not None:
        with suppress(OSError):
            leave(charge.stub, charge.detach if charge.stopped else "")


def run_command(charge: Charge, *, tries: int = COMMAND_TRIES) -> None:
    """This lets the machine run where there is no connection to its monitor."""
    if not (charge.stopped and charge.command):
        return
    for _ in range(tries):
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(charge.command, timeout=COMMAND_S, check=False)  # noqa: S603 - as we were told
            if done.returncode == 0:
                return
        time.sleep(COMMAND_PAUSE_S)


def leave(stub: socket.socket, detach: str) -> None:
    """This clears what the dead program has left in the gdbstub, and lets go of it.

    The question why the guest stands still removes all breakpoints. An interrupt stops a guest that
    runs and is nothing to one that does not; what follows it ends a request that was half written.
    """
    requests = ["?", "Qqemu.PhyMemMode:0", *([detach] if detach else [])]
    stub.settimeout(STUB_S)
    stub.sendall(INTERRUPT + END_OF_HALF_A_REQUEST + b"".join(map(packet, requests)))
    heard = b""
    while heard.count(b"$OK#") < len(requests) - 1 and (chunk := stub.recv(CHUNK)):
        heard = heard[-MAX_MESSAGE:] + chunk
    stub.close()


def packet(body: str) -> bytes:
    """This is a request to the gdbstub."""
    return b"$%b#%02x" % (body.encode(), sum(body.encode()) % 256)


def end_stub(monitor: socket.socket, answers: Iterator[bytes]) -> None:
    """This ends the gdbstub that was started for the dead program."""
    line = {"command-line": "gdbserver none"}
    monitor.sendall(request("human-monitor-command", line))
    answer("human-monitor-command", answers)


def begin(monitor: socket.socket, first: bytes) -> Iterator[bytes]:
    """This goes on with the dead program's QMP session, once QEMU answers, and is what it says then."""
    monitor.settimeout(RESCUE_S)
    answers = lines(monitor, time.monotonic() + RESCUE_S)
    monitor.sendall(first + b"\n" + request("query-version"))
    answer("query-version", answers)
    return answers


def cont(monitor: socket.socket, answers: Iterator[bytes]) -> None:
    """This lets a machine run that is stopped."""
    monitor.sendall(request("query-status"))
    if is_to_run(answer("query-status", answers)):
        monitor.sendall(request("cont"))
        answer("cont", answers)


def cont_beside(monitor: socket.socket) -> bool:
    """This lets a machine run, in the QMP session of a program that is stopped, if QEMU answers."""
    monitor.sendall(b"\n" + request("query-status"), socket.MSG_DONTWAIT)
    deadline = time.monotonic() + BESIDE_S
    while time.monotonic() < deadline:
        said = monitor.recv(MAX_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT).split(b"\n")
        status = answer("query-status", iter(reversed(said[:-1])))
        if status is not None:
            if is_to_run(status):
                monitor.sendall(request("cont"), socket.MSG_DONTWAIT)
            return True
        time.sleep(BESIDE_POLL_S)
    return False


def is_to_run(status: object) -> bool:
    """This tells whether a machine stands still that ``cont`` lets run."""
    return isinstance(status, dict) and status.get("status") in STOPPED


def request(command: str, arguments: dict[str, str] | None = None) -> bytes:
    """This is a command of the guardian's own."""
    asked = {"execute": command, "arguments": arguments or {}, "id": f"guardian {command}"}
    return json.dumps(asked).encode() + b"\n"


def answer(command: str, answers: Iterator[bytes]) -> object:
    """This is what QEMU answers to the guardian's own command; None where it refused it."""
    for line in answers:
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and message.get("id") == f"guardian {command}":
                return message.get("return")
    return None


def lines(monitor: socket.socket, deadline: float) -> Iterator[bytes]:
    """These are the lines that QEMU says before the deadline."""
    pending, total = b"", 0
    while total < MAX_WAITING and (left := deadline - time.monotonic()) > 0:
        monitor.settimeout(left)
        chunk = monitor.recv(CHUNK)
        if not chunk:
            return
        total += len(chunk)
        *whole, pending = (pending + chunk).split(b"\n")
        yield from whole


def main() -> None:
    """This guards until there is nothing left to guard."""
    # A signal for the whole session, as at its end, is for the program; what follows is our part.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        make_good(guard(channel))


if __name__ == "__main__":
    main()
