"""The guardian's own process: it waits for the end of the program it guards, and then makes good.

Run as ``python -I -S guardian_process.py CHANNEL``; it needs nothing but the standard library, since
it has to work whatever became of the rest. See :mod:`qvmi.machine.guardian`, which starts it.

References: GDB manual, "Remote Protocol"; QEMU ``docs/interop/qmp-spec.rst`` and ``qobject/json-lexer.c``,
in which the byte 0xFF, which no UTF-8 has, ends whatever was begun; Linux unix(7) SCM_RIGHTS,
pidfd_open(2).
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
RESCUE_S: Final = 10.0
"""How long QEMU may take for the answers; it owes none but what the dead program had asked for."""
MAX_WAITING: Final = 64 << 20
"""Bytes of answers to the dead program that are thrown away before QEMU counts as broken."""
CHUNK: Final = 1 << 16
NEVER_UTF8: Final = b"\xff"
STUB_S: Final = 5.0
"""How long the gdbstub may take for each answer."""
INTERRUPT: Final = b"\x03"
END_OF_HALF_A_REQUEST: Final = b"+#00#00"
STOPPED: Final = frozenset({"paused", "debug"})
"""The states that ``cont`` leads out of, of those that a ``stop`` leads to."""


class Charge:
    """What the guardian was told: who was stopped, and how to let it run on.

    Attributes:
        monitor: a duplicate of the program's QMP connection, if it has one.
        stub: a duplicate of its connection to the gdbstub, while it has one.
        command: what lets the machine run on where there is no connection to the monitor.
        detach: the packet that lets go of the gdbstub.
        folder: of a gdbstub that was started for the program; empty where there is none.
        stopped: whether the machine may stand still because of the program.
        ended: whether the program has said good-bye.
    """

    def __init__(self) -> None:
        self.monitor: socket.socket | None = None
        self.stub: socket.socket | None = None
        self.command: list[str] = []
        self.detach = "D"
        self.folder = ""
        self.stopped = False
        self.ended = False

    def note(self, message: bytes, descriptors: list[int]) -> None:
        """This takes in one message, in the form that `guardian.py` sends."""
        told = json.loads(message)
        self.stopped = told.get("stopped", self.stopped)
        self.command = told.get("command", self.command)
        self.detach = told.get("detach", self.detach)
        self.folder = told.get("folder", self.folder)
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
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    # A child that the program has forked may hold the channel open for longer than it lives. Where
    # it has ended already, so has its end of the channel, or the next message is the last.
    with suppress(ProcessLookupError):
        waiting.register(os.pidfd_open(peer(channel)), select.POLLIN)
    while not charge.ended:
        ready = [descriptor for descriptor, _ in waiting.poll()]
        if channel.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
            if not message:
                break
            charge.note(message, descriptors)
        else:
            break
    return charge


def peer(channel: socket.socket) -> int:
    """This is the program's process id."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


def make_good(charge: Charge) -> None:
    """This lets the machine run on if it stands still because of the program that is no more."""
    if charge.stub is not None:
        with suppress(OSError):
            leave(charge.stub, charge.detach if charge.stopped else "")
    if charge.stopped and charge.monitor is not None:
        cont(charge.monitor, time.monotonic() + RESCUE_S)
    elif charge.stopped and charge.command:
        subprocess.run(charge.command, timeout=RESCUE_S, check=False)  # noqa: S603 - as we were told
    if charge.folder:
        end_stub(charge)
        if charge.stopped and charge.monitor is not None:
            # QEMU may have seen the dead program's connection to the stub only just before.
            cont(charge.monitor, time.monotonic() + RESCUE_S)


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


def end_stub(charge: Charge) -> None:
    """This ends the gdbstub that was started for the dead program."""
    line = {"command-line": "gdbserver none"}
    if charge.monitor is not None:
        answers = lines(charge.monitor, time.monotonic() + RESCUE_S)
        charge.monitor.sendall(NEVER_UTF8 + b"\n" + request("human-monitor-command", line))
        answer("human-monitor-command", answers)
    shutil.rmtree(charge.folder, ignore_errors=True)


def cont(monitor: socket.socket, deadline: float) -> None:
    """This goes on with the dead program's QMP session, whatever it was in the middle of."""
    answers = lines(monitor, deadline)
    monitor.sendall(NEVER_UTF8 + b"\n" + request("query-status"))
    status = answer("query-status", answers)
    if isinstance(status, dict) and status.get("status") in STOPPED:
        monitor.sendall(request("cont"))
        answer("cont", answers)


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
