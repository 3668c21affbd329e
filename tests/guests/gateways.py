"""A gateway as a user runs it, and raw clients that say what no decent tool would."""

import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tests.command_line import QVMI, environment
from tests.repository.tree import ROOT

__all__ = [
    "ANSWER_S",
    "Gateway",
    "RawDebugger",
    "RawQmp",
    "gateway",
    "gdb",
    "gdb_arguments",
    "wait_until",
]

ANSWER_S: Final = 60.0
"""Answers come within milliseconds; a loaded machine may be very slow."""
_POLL_S: Final = 0.01


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ANSWER_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Gateway:
    """This is a running ``qvmi gateway``.

    Attributes:
        folder: where its sockets and its audit log are.
    """

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def qmp(self) -> str:
        return str(self.folder / "qmp")

    @property
    def gdb(self) -> str:
        return str(self.folder / "gdb")

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def is_open(self) -> bool:
        """This tells whether both sockets take clients in."""
        assert self.process.poll() is None, (self.folder / "said").read_text()
        for place in (self.qmp, self.gdb):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(place)
                except OSError:
                    return False
        return True

    def audit(self) -> list[str]:
        """These are the texts of the audit log so far."""
        lines = self.audit_log.read_text().splitlines()
        return [str(json.loads(line)["text"]) for line in lines]

    def stop(self) -> int:
        """This sends Ctrl-C, and is the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(ANSWER_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(ANSWER_S)


@contextmanager
def gateway(qmp: str, *options: str) -> Iterator[Gateway]:
    """This runs the command for the length of the block, with both sockets in a private folder."""
    with tempfile.TemporaryDirectory(prefix="qvmi-gate-") as name:
        folder = Path(name)
        places = ("--qmp-listen", name + "/qmp", "--gdb-listen", name + "/gdb")
        with (folder / "said").open("w") as said:
            process = subprocess.Popen(
                (*QVMI, "--qmp", qmp, "gateway", *places, "--audit", name + "/audit.log", *options),
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stderr=said,
            )
        with process:
            try:
                opened = Gateway(process, folder)
                wait_until(opened.is_open, "the gateway does not listen")
                yield opened
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(ANSWER_S)
                finally:
                    process.kill()


@dataclass(slots=True)
class _Client:
    """This is a connection to a gateway's socket."""

    connection: socket.socket
    heard: bytes = b""

    @classmethod
    def to(cls, path: str) -> Self:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)  # blocking: with a timeout it would fail where the queue is full
        connection.settimeout(ANSWER_S)
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def more(self) -> bool:
        """This waits for bytes; False where the gateway has hung up."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.heard += data
        return bool(data)

    def require_more(self) -> None:
        """This waits for bytes, which must come."""
        if not self.more():
            raise ConnectionResetError("the gateway has hung up")

    def hung_up(self) -> bool:
        """This waits for the end, whatever is said before it."""
        while self.more():
            pass
        return True


@dataclass(slots=True)
class RawQmp(_Client):
    """This is a client that says any bytes where QMP is expected."""

    events: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """This is the next line that is no event."""
        while True:
            while b"\n" not in self.heard:
                self.require_more()
            line, _, self.heard = self.heard.partition(b"\n")
            told: dict[str, Any] = json.loads(line)
            if "event" not in told:
                return told
            self.events.append(told["event"])

    def negotiated(self) -> Self:
        assert "QMP" in self.line()
        assert self.ask(b'{"execute":"qmp_capabilities"}\n') == {"return": {}}
        return self

    def ask(self, request: bytes) -> dict[str, Any]:
        self.send(request)
        return self.line()

    def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        return self.ask(json.dumps(request).encode() + b"\n")

    def human(self, line: str) -> dict[str, Any]:
        return self.execute("human-monitor-command", **{"command-line": line})


@dataclass(slots=True)
class RawDebugger(_Client):
    """This is a client that says any packet where a debugger is expected."""

    def say(self, body: bytes) -> None:
        self.send(b"$%b#%02x" % (body, sum(body) & 0xFF))

    def packet(self) -> bytes:
        """This is the next packet's body; acknowledgements are passed over."""
        while True:
            start = self.heard.find(b"$")
            end = self.heard.find(b"#", start)
            if 0 <= start < end and len(self.heard) > end + 2:
                body = self.heard[start + 1 : end]
                self.heard = self.heard[end + 3 :]
                return body
            self.require_more()

    def ask(self, body: bytes) -> bytes:
        self.say(body)
        return self.packet()

    def says_nothing(self, seconds: float) -> bool:
        """This tells whether no packet has come within some time."""
        self.connection.settimeout(seconds)
        try:
            while b"$" not in self.heard:
                if not self.more():
                    return False
        except TimeoutError:
            return True
        finally:
            self.connection.settimeout(ANSWER_S)
        return False


def gdb_arguments(gate: Gateway, *commands: str) -> tuple[str, ...]:
    first = ("set pagination off", "set confirm off", "set architecture i386:x86-64")
    words = [
        word for one in (*first, f"target remote {gate.gdb}", *commands) for word in ("-ex", one)
    ]
    return ("gdb", "-nx", "-batch", *words)


def gdb(gate: Gateway, *commands: str) -> str:
    """This is what gdb prints for commands, behind its connection to a gateway."""
    done = subprocess.run(
        gdb_arguments(gate, *commands),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        check=False,
    )
    return done.stdout + done.stderr
