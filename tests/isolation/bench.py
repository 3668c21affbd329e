"""What an examination is tried on: network namespaces, brokers and machines, gone with their test."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qvmi.bus.account import Account
from qvmi.bus.mosquitto_config import files
from qvmi.bus.topic import TopicFilter
from tests.command_line import qvmi
from tests.guests.bare_qemu import BareQemu
from tests.guests.lab.monitor import Monitor
from tests.guests.lab.newer_qemu import chosen_qemu
from tests.guests.lab.process import QemuProcess

__all__ = ["Bench", "Examined", "Network", "RunningBroker", "bench", "until"]

WAIT_S: Final = 30.0
"""Longest wait for a program to begin; it takes a tenth of a second on an idle machine."""
POLL_S: Final = 0.005


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what no event tells of."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Network:
    """This is a network namespace, or the one that the tests themselves run in.

    Args:
        holder: the pid of the process that keeps it; None for our own.
    """

    holder: int | None = None

    @property
    def entrance(self) -> tuple[str, ...]:
        """This is what stands before a command that runs in it."""
        if self.holder is None:
            return ()
        return ("nsenter", f"--net=/proc/{self.holder}/ns/net", "--")

    def run(self, *command: str) -> str:
        """This runs a command in it and returns what it prints."""
        done = subprocess.run(
            (*self.entrance, *command), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def ip(self, line: str) -> None:
        """This changes its interfaces; our own network's are never touched."""
        assert self.holder is not None
        self.run("ip", *line.split())

    def bridge(self, name: str, address: str, *taps: str) -> None:
        """This makes a bridge with taps for ports."""
        self.ip("link set lo up")
        self.ip(f"link add {name} type bridge")
        self.ip(f"address add {address} dev {name}")
        for tap in taps:
            self.ip(f"tuntap add {tap} mode tap")
            self.ip(f"link set {tap} master {name} up")
        self.ip(f"link set {name} up")


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """This is a mosquitto with a configuration of the test's."""

    pid: int
    folder: Path
    account: Account

    @property
    def socket(self) -> Path:
        """This is its Unix socket."""
        return self.folder / "mqtt.sock"


@dataclass(frozen=True, slots=True)
class Examined:
    """This is what ``qvmi doctor --json`` said.

    Attributes:
        code: its exit code.
    """

    code: int
    document: Any

    def findings(self, verdict: str, *, decides: bool = True) -> list[str]:
        """This is the evidence of all findings with that verdict."""
        return [
            finding["evidence"]
            for check in self.document["isolation"]["checks"]
            if check["decides"] is decides
            for finding in check["findings"]
            if finding["verdict"] == verdict
        ]

    @property
    def ways(self) -> list[str]:
        """These are the ways that were found."""
        return self.findings("refuted")

    @property
    def open(self) -> list[str]:
        """This is what could not be checked."""
        return self.findings("not checkable")


@dataclass(slots=True)
class Bench:
    """This makes what a test needs, and ends it with the test."""

    stack: ExitStack
    folder: Path
    made: int = field(default=0)

    def network(self) -> Network:
        """This is a new network namespace, which goes when nobody is in it any more."""
        holder = self._started(("unshare", "--net", "cat"))
        own = os.readlink("/proc/self/ns/net")  # noqa: PTH115 - no file, but what the link says

        def has_its_own() -> bool:
            assert holder.poll() is None
            return os.readlink(f"/proc/{holder.pid}/ns/net") != own  # noqa: PTH115 - as above

        until(has_its_own, "no network namespace")
        return Network(holder.pid)

    def broker(
        self,
        *lines: str,
        network: Network | None = None,
        without: Sequence[str] = (),
        readable: Sequence[str] = (),
    ) -> RunningBroker:
        """This starts a broker as qvmi would configure it, but for some lines.

        Args:
            lines: what is added.
            network: where it runs.
            without: settings that are left out.
            readable: files of its folder that everybody may read.
        """
        account = Account.of_reader("tester", TopicFilter("vm"))
        folder = self.new_folder()
        for name, text in files([account], root=True).items():
            kept = [line for line in text.splitlines() if line.partition(" ")[0] not in without]
            more = lines if name == "mosquitto.conf" else ()
            (folder / name).write_text("\n".join((*kept, *more)) + "\n")
            (folder / name).chmod(0o644 if name in readable else 0o600)
        entrance = network.entrance if network else ()
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program
        command = (*entrance, "setpriv", "--pdeathsig", "KILL", program, "-c", "mosquitto.conf")
        process = self._started(command, cwd=folder)
        broker = RunningBroker(process.pid, folder, account)
        until(
            lambda: process.poll() is None and _accepts(broker.socket), "the broker does not start"
        )
        return broker

    def member(self, broker: RunningBroker) -> socket.socket:
        """This enters the bus: the process that runs the tests is on it from then on."""
        name, secret = broker.account.name.encode(), broker.account.secret.encode()
        fields = (b"tester", name, secret)
        body = b"\0\4MQTT\4\xc2\0\0" + b"".join(len(f).to_bytes(2, "big") + f for f in fields)
        connection = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(WAIT_S)
        connection.connect(str(broker.socket))
        connection.sendall(bytes([0x10, len(body)]) + body)
        assert connection.recv(4) == b"\x20\2\0\0"
        return connection

    def machine(self, *arguments: str, network: Network | None = None) -> BareQemu:
        """This starts a QEMU whose vCPUs stand still."""
        return self._machine(network.entrance if network else (), arguments)

    def machine_through(
        self, starter: Sequence[str], *arguments: str, network: Network | None = None
    ) -> BareQemu:
        """This has a script become that QEMU, whose command line stands behind its own arguments."""
        entrance = network.entrance if network else ()
        return self._machine((*entrance, sys.executable, "-I", "-S", *starter), arguments)

    def machine_within(self, entrance: Sequence[str], *arguments: str) -> BareQemu:
        """This starts a QEMU by a command that runs another one."""
        return self._machine(entrance, arguments)

    def _machine(self, entrance: Sequence[str], arguments: Sequence[str]) -> BareQemu:
        folder = self.new_folder()
        served = [
            part
            for name in ("own.sock", "qmp.sock")
            for part in ("-qmp", f"unix:{folder / name},server=on,wait=off")
        ]
        base = ("qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none")
        command = chosen_qemu().command(*base, "-m", "32", *served, *arguments)
        process = QemuProcess.start((*entrance, *command), folder)
        self.stack.callback(process.end)
        stream = process.connect("own.sock", deadline=time.monotonic() + WAIT_S)
        monitor = self.stack.enter_context(Monitor.over(stream))
        return BareQemu(process, monitor, folder)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """This waits for what no event tells of."""
        until(condition, what)

    def new_folder(self, mode: int = 0o700) -> Path:
        """This is a new folder, which only its owner may enter unless `mode` says otherwise."""
        self.made += 1
        folder = self.folder / str(self.made)
        folder.mkdir()
        folder.chmod(mode)
        return folder

    def examine(
        self, machine: BareQemu, broker: RunningBroker | None = None, *more: str, qmp: str = ""
    ) -> Examined:
        """This runs ``qvmi doctor``."""
        bus = ("--broker", str(broker.folder)) if broker else ()
        done = qvmi("--qmp", qmp or machine.qmp, "--json", "doctor", *bus, *more)
        assert done.stdout, done.stderr
        return Examined(done.returncode, json.loads(done.stdout))

    def start(self, *command: str) -> int:
        """This starts a program that runs as long as the test, and returns its pid."""
        return self._started(("setpriv", "--pdeathsig", "KILL", *command)).pid

    def _started(
        self, command: Sequence[str], *, cwd: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.stack.callback(_ended, process)
        return process


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def bench() -> Iterator[Bench]:
    """This makes a bench for the length of the block."""
    with ExitStack() as stack:
        # Other users may pass through, so that what they may open is what the test says.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvmi-")))
        folder.chmod(0o755)
        yield Bench(stack, folder)
