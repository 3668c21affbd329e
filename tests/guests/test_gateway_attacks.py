"""Gateways under attack: whatever clients say and whenever they go, others are served and the guest runs."""

import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.gateways import ANSWER_S, Gateway, RawDebugger, RawQmp, gateway, wait_until
from tests.proofs import proof_size

CLIENTS: Final = 300
CLIENTS_FULL: Final = 5_000
AT_ONCE: Final = 8
GROWTH: Final = 64 << 20
"""Bytes; a client's answers may be 16 MiB, and nobody here waits for such."""

QMP_PIECES: Final = (
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b" ", b"\0", b"\xff", b"\xc3"),
    *(b'"execute"', b'"arguments"', b'"id"', b'"exec-oob"', b'"quit"', b'"stop"', b"\\u0071uit"),
    *(b'{"execute":"query-status"}', b'{"execute":"quit"}', b'{"execute":"stop"}\n', b"9" * 40),
    *(b"NaN", b"1e999", b'{"a":' * 20, b'"' + b"x" * 70_000, b'{"execute":"cont"}\n'),
)
RSP_PIECES: Final = (
    *(b"$", b"#", b"}", b"*", b"+", b"-", b"\x03", b"#00", b"%", b"\0", b"\xff", b"$#00"),
    *(b"$?#3f", b"$g#67", b"$c#63", b"$s#73", b"$D#44", b"$k#6b", b"$vCont;c#a8", b"$m1000,10#2a"),
    *(b"$vKill;1#6e", b"$qRcmd,71756974#85", b"$Hg1#e0", b"$Qqemu.PhyMemMode:1#bd", b"$qC#b4"),
    *(b"$X0,4:}", b"$m" + b"0" * 9000, b"$M0,4:00000000#23"),
)


@pytest.fixture
def bare() -> Iterator[BareQemu]:
    with bare_qemu("-m", "64", "-smp", "2") as qemu:
        yield qemu


# ------------------------------------------------------------------------------------- random clients


class RandomClient:
    """This is one client, that does what its number says.

    Attributes:
        refused: what it was refused, each a word that no other client says.
        sent_away: it was hung up on before it had said anything wrong.
    """

    def __init__(self, gate: Gateway, number: int) -> None:
        self.refused: list[str] = []
        self.sent_away = False
        self._gate = gate
        self._number = number
        self._random = random.Random(number)

    def visit(self) -> None:
        """This comes, says a few things, and goes at any moment."""
        over_qmp = self._random.random() < 0.5
        with RawQmp.to(self._gate.qmp) if over_qmp else RawDebugger.to(self._gate.gdb) as client:
            try:
                self._behave(client)
            except ConnectionError:
                self.sent_away = True
                return
            with suppress(ConnectionError):
                self._misbehave(client.connection, QMP_PIECES if over_qmp else RSP_PIECES)

    def _behave(self, client: RawQmp | RawDebugger) -> None:
        if isinstance(client, RawQmp):
            self._over_qmp(client)
        else:
            self._as_debugger(client)

    def _over_qmp(self, client: RawQmp) -> None:
        if self._random.random() < 0.9:
            client.negotiated()
            for step in range(self._random.randrange(6)):
                word = f"no-such-{self._number}-{step}"
                what = self._random.choice((word, "query-status", "stop", "cont"))
                told = client.execute(what)
                if what == word:
                    assert told["error"]["class"] == "CommandNotFound"
                    self.refused.append(word)

    def _as_debugger(self, client: RawDebugger) -> None:
        for step in range(self._random.randrange(6)):
            word = f"M{self._number:x}{step:x},1:00"
            what = self._random.choice((word, "?", "g", "m1000,10", "Hg1", "D", "Z0,1000,1"))
            told = client.ask(what.encode())
            if told.startswith(b"E."):  # the last words: QEMU was too slow
                return
            if what == word:
                assert told == b"E01"
                self.refused.append(word)
        if self._random.random() < 0.3:
            client.ask(b"?")
            client.say(b"vCont;c")

    def _misbehave(self, connection: socket.socket, pieces: tuple[bytes, ...]) -> None:
        for _ in range(self._random.randrange(5)):
            known = b"".join(self._random.choices(pieces, k=self._random.randrange(1, 8)))
            data = self._random.choice(
                (known, self._random.randbytes(40), known[: len(known) // 2])
            )
            if self._random.random() < 0.2:
                with Path("/dev/null").open("rb") as file:
                    socket.send_fds(connection, [data or b"+"], [file.fileno()] * 4)
            else:
                connection.sendall(data)
        if self._random.random() < 0.5:
            connection.settimeout(0.02)  # it listens for a moment, or does not
            with suppress(TimeoutError):
                connection.recv(1 << 16)


def resident(gate: Gateway, which: str) -> int:
    """This is what the kernel says of the gateway's memory, in bytes."""
    status = Path(f"/proc/{gate.process.pid}/status").read_text()
    return int(re.findall(rf"^{which}:\s+(\d+) kB", status, re.MULTILINE)[0]) << 10


def descriptors(gate: Gateway) -> int:
    return len(list(Path(f"/proc/{gate.process.pid}/fd").iterdir()))


def good_clients_are_served(gate: Gateway) -> None:
    with RawQmp.to(gate.qmp) as client, RawDebugger.to(gate.gdb) as debugger:
        assert "return" in client.negotiated().execute("query-status")
        assert "return" in client.human("xp /4xb 0x1000")
        assert debugger.ask(b"?").startswith(b"T05thread:1;")
        assert len(debugger.ask(b"m1000,10")) == 0x20
        assert debugger.ask(b"D") == b"OK"


def test_random_clients_leave_a_guest_that_runs_and_a_gateway_that_serves(
    bare: BareQemu, proof_count: Callable[[int], None]
) -> None:
    number = proof_size(ci=CLIENTS, full=CLIENTS_FULL)
    with gateway(bare.qmp, "--may-break") as gate:
        good_clients_are_served(gate)
        before, opened = resident(gate, "VmRSS"), descriptors(gate)
        clients = [RandomClient(gate, one) for one in range(number)]
        with RawQmp.to(gate.qmp) as other, ThreadPoolExecutor(AT_ONCE) as crowd:
            other.negotiated()
            for visit in [crowd.submit(client.visit) for client in clients]:
                assert "return" in other.execute("query-name")
                visit.result()
        wait_until(bare.monitor.running, "the guest does not run")
        wait_until(lambda: descriptors(gate) <= opened, "connections are left open")
        good_clients_are_served(gate)
        wait_until(bare.monitor.running, "the guest does not run")
        assert resident(gate, "VmHWM") - before < GROWTH
        told = " ".join(text for text in gate.audit() if text.startswith("refused"))
        said = (gate.folder / "said").read_text()
    assert "Traceback" not in said
    assert sum(client.sent_away for client in clients) <= said.count("a client sent away")
    words = [word for client in clients for word in client.refused]
    assert len(words) > number // 4
    assert [word for word in words if told.count(word) != 1] == []
    proof_count(number)


# --------------------------------------------------------------------------------------------- floods


FLOODS: Final = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    data = bytes.fromhex(sys.argv[2]) * (1 << 18)
    connection.sendall(data)
    os.write(1, b"!")
    while True:
        connection.sendall(data)
"""


@contextmanager
def flood(path: str, piece: bytes) -> Iterator[None]:
    """These are processes that say the same without an end, as fast as it is heard."""
    command = (sys.executable, "-I", "-S", "-c", FLOODS, path, piece.hex())
    with ExitStack() as stack:
        for _ in range(2):
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            assert process.stdout
            assert process.stdout.read(1) == b"!", "nothing is heard"
        yield


@pytest.mark.parametrize("piece", [b"+\x03", b"#00"], ids=repr)
def test_a_debugger_that_says_without_an_end_what_needs_no_answer_keeps_nobody_waiting(
    bare: BareQemu, piece: bytes
) -> None:
    with gateway(bare.qmp, "--may-pause") as gate, flood(gate.gdb, piece):
        good_clients_are_served(gate)


def test_blanks_without_an_end_keep_nobody_waiting(bare: BareQemu) -> None:
    with gateway(bare.qmp, "--may-pause") as gate, flood(gate.qmp, b"\n"):
        good_clients_are_served(gate)


def test_a_client_is_called_by_a_name_that_can_be_shown_however_it_calls_itself(
    bare: BareQemu,
) -> None:
    """What stands in its name stands in the log, on the terminal of who runs the gateway, and in answers."""
    says = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"execute":"qmp_capabilities"}\\n{"execute":"stop"}\\n\');'
        "f = s.makefile('rb'); sys.stdout.buffer.write(b''.join(f.readline() for _ in range(3)))"
    )
    with gateway(bare.qmp) as gate:
        for name in (b"\xff\x1b[31m\nrefused: all", b"n" * 2000):
            command = (name, b"-I", b"-S", b"-c", says.encode(), gate.qmp.encode())
            done = subprocess.run(
                command,
                executable="/usr/bin/python3",
                capture_output=True,
                timeout=ANSWER_S,
                check=True,
            )
            assert b"needs grant 'pause'" in done.stdout
        said, log = (gate.folder / "said").read_text(), gate.audit()
        assert sum("stop: not granted" in text for text in log) == 2
        assert max(map(len, log)) < 400
        assert said.isascii()
        assert "\x1b" not in said
        assert not any(line.startswith("refused: all") for line in said.splitlines())


# ------------------------------------------------------------------------------------- what is memory


def test_memory_that_is_plugged_in_is_read_at_once_and_not_before() -> None:
    with (
        bare_qemu("-m", "64,slots=2,maxmem=256M") as qemu,
        gateway(qemu.qmp) as gate,
        RawQmp.to(gate.qmp) as client,
    ):
        client.negotiated()
        ask = "xp /2xg 0x100000000"
        for slot in ("a", "b"):
            assert "no memory" in client.human(ask)["error"]["desc"]
            qemu.monitor.execute(
                "object-add", **{"qom-type": "memory-backend-ram", "id": slot, "size": 64 << 20}
            )
            qemu.monitor.execute("device_add", driver="pc-dimm", memdev=slot, id=f"dimm-{slot}")
            assert "return" in client.human(ask)
            ask = "xp /2xg 0x104000000"


def test_memory_that_a_reset_has_taken_away_is_read_by_no_one(tmp_path: Path) -> None:
    """The BAR of a device with memory is mapped by the firmware, and nowhere behind a reset."""
    shared = f"memory-backend-file,id=bar,size=1M,mem-path={tmp_path / 'bar'},share=on"
    with (
        bare_qemu("-m", "64", "-object", shared, "-device", "ivshmem-plain,memdev=bar") as qemu,
        gateway(qemu.qmp) as gate,
        RawQmp.to(gate.qmp) as client,
    ):
        client.negotiated()
        place: list[str] = []

        def is_mapped() -> bool:
            place[:] = re.findall(
                r"^  ([0-9a-f]{16})-[0-9a-f]{16} \(prio \d+, ram\): bar",
                qemu.monitor.human("info mtree -f"),
                re.MULTILINE,
            )
            return bool(place)

        wait_until(is_mapped, "the firmware maps no BAR")
        qemu.monitor.execute("stop")
        wait_until(is_mapped, "the firmware maps no BAR")
        ask = f"xp /1xw 0x{int(place[0], 16):x}"
        assert "return" in client.human(ask)
        qemu.monitor.execute("system_reset")
        assert "no memory" in client.human(ask)["error"]["desc"]


# ------------------------------------------------------------------------------- what addresses mean

CR0, CR3, CR4 = 27, 29, 30
"""Their numbers in QEMU's description of an x86-64 machine's registers."""


def words(debugger: RawDebugger, *requests: bytes) -> list[bytes]:
    return [debugger.ask(request) for request in requests]


def test_a_page_that_a_write_has_moved_is_judged_where_it_lies_now(
    bare: BareQemu, tmp_path: Path
) -> None:
    """One entry maps 4 MiB, to where may be read; then it maps others, to where may not."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "version = 1\n[codepacks.gateway]\npause = true\nread-registers = true\nwrite = true\n"
        'read-memory = { physical = ["0x0+4M"] }\n'
    )
    control = ((CR4, 0x10), (CR3, 0x2000), (CR0, 0x8000_0011))
    with gateway(bare.qmp, "--policy", str(policy)) as gate, RawDebugger.to(gate.gdb) as debugger:
        assert debugger.ask(b"?").startswith(b"T05")
        for number, value in control:
            written = debugger.ask(b"P%x=%b" % (number, value.to_bytes(8, "little").hex().encode()))
            assert written == b"OK"
        assert words(debugger, b"m3000,4") == [b"E14"], "no page is there"
        physical = (b"Qqemu.PhyMemMode:1", b"M2000,4:83000000", b"Qqemu.PhyMemMode:0")
        assert words(debugger, *physical) == [b"OK"] * 3
        assert len(debugger.ask(b"m3000,4")) == 8
        assert debugger.ask(b"M2000,4:83004000") == b"OK"
        assert debugger.ask(b"m3000,4") == b"E01"
        assert any("outside of its ranges" in text for text in gate.audit())


def test_physical_addresses_are_one_debuggers_own_and_go_by_physical_ranges(
    bare: BareQemu, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "version = 1\n[codepacks.gateway]\npause = true\nread-registers = true\nwrite = true\n"
        'read-memory = { virtual = ["0x3000+4K"] }\n'
    )
    with gateway(bare.qmp, "--policy", str(policy)) as gate, RawDebugger.to(gate.gdb) as other:
        assert other.ask(b"?").startswith(b"T05")
        with RawDebugger.to(gate.gdb) as debugger:
            debugger.ask(b"?")
            told = words(debugger, b"m3000,4", b"Qqemu.PhyMemMode:1", b"m3000,4", b"mfee00020,4")
            assert told[1:] == [b"OK", b"E01", b"E01"]
            assert words(debugger, b"Mfee00020,4:00000000") == [b"E14"]
            assert len(told[0]) == len(other.ask(b"m3000,4")) == 8
            assert words(debugger, b"D", b"?")[0] == b"OK"
            assert len(debugger.ask(b"m3000,4")) == 8, "it does not outlast the session"
