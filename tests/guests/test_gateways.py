"""Gateways before real guests: real tools look, every attack is refused, and the guest runs on."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest
from qemu.qmp import QMPClient

from tests.asynchronous import asynchronous
from tests.command_line import QVMI, environment, qvmi_document
from tests.command_line import qvmi as qvmi_command
from tests.guests.bare_qemu import bare_qemu
from tests.guests.gateways import ANSWER_S, Gateway, RawDebugger, RawQmp, gateway, gdb, wait_until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

FORK: Final = "kernel_clone"
BANNER: Final = b"Linux version "
BIN: Final = Path(sys.executable).parent


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture(scope="module")
def fork(guest: Guest) -> int:
    """This is where forks begin."""
    return address_of(guest, FORK)


def address_of(guest: Guest, symbol: str) -> int:
    return int(guest.run(f"grep ' {symbol}$' /proc/kallsyms").split()[0], 16)


def forks(guest: Guest) -> int:
    (line,) = (one for one in guest.run("cat /proc/stat").splitlines() if b"processes" in one)
    return int(line.split()[1])


def banner_in_ram(guest: Guest) -> int:
    """This is where the kernel's banner lies in the file that is the guest's RAM, at physical address 0."""
    (path,) = guest.ram_paths
    release = guest.run("uname -r").strip()
    at = path.read_bytes().find(BANNER + release)
    assert at > 0
    return at


def shell(gate: Gateway, *lines: str, options: Sequence[str] = ()) -> str:
    """This is what QEMU's own qmp-shell prints for lines typed into it."""
    done = subprocess.run(
        (BIN / "qmp-shell", *options, gate.qmp),
        input="".join(f"{line}\n" for line in lines),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        check=True,
    )
    return done.stdout


# ------------------------------------------------------------------------------ tools that speak QMP


def test_qmp_shell_is_told_what_is_allowed_and_nothing_else(guest: Guest) -> None:
    with gateway(guest.qmp) as gate:
        said = shell(
            gate,
            "query-status",
            "query-chardev",
            "stop",
            "query-target",
        )
    status, chardev, stop, target = re.findall(r"^.*\{.*\}$", said, re.MULTILINE)
    assert "'running': True" in status or '"running": true' in status
    assert "CommandNotFound" in chardev
    assert "needs grant 'pause'" in stop
    assert "x86_64" in target
    assert guest.monitor.running()


def test_qmp_shell_speaks_the_monitors_lines_that_are_allowed(guest: Guest) -> None:
    at = banner_in_ram(guest)
    with gateway(guest.qmp) as gate:
        said = shell(gate, "info registers", f"xp /13xb {at:#x}", "info block", options=["--hmp"])
    assert re.search(r"RIP=[0-9a-f]{16}", said)
    assert bytes(int(one, 16) for one in re.findall(r" 0x([0-9a-f]{2})\b", said)) == BANNER[:13]
    assert "'info block' is not one of" in said


@asynchronous
async def test_clients_of_qemu_qmp_share_one_qemu_and_each_hears_of_events(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        clients = [QMPClient(f"client {number}") for number in range(3)]
        for client in clients:
            await client.connect(gate.qmp)
        answers = await asyncio.gather(*(one.execute("query-status") for one in clients))
        assert [answer["running"] for answer in answers] == [True, True, True]  # type: ignore[index]  # JSON
        await clients[0].execute("stop")
        for client in clients:
            async with asyncio.timeout(ANSWER_S):
                assert (await client.events.get())["event"] == "STOP"
        assert not guest.monitor.running()
        await clients[0].execute("cont")
        assert guest.monitor.running()
        for client in clients:
            await client.disconnect()


DRGN: Final = """
import sys
from drgn import Program
program = Program(vmcoreinfo=b"OSRELEASE=6.1.0\\nPAGESIZE=4096\\nNUMBER(phys_base)=0\\n"
                  b"SYMBOL(swapper_pg_dir)=ffffffff82000000\\nKERNELOFFSET=0\\n")
program.set_qemu_qmp(sys.argv[1])
sys.stdout.buffer.write(program.read(int(sys.argv[2]), 3000, physical=True))
"""


def test_drgn_reads_the_bytes_that_are_in_the_guests_ram(guest: Guest) -> None:
    at = banner_in_ram(guest)
    expected = guest.ram_paths[0].read_bytes()[at : at + 3000]
    with gateway(guest.qmp) as gate:
        command = (sys.executable, "-c", DRGN, gate.qmp, str(at))
        read = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=True).stdout
        assert read == expected
        assert any("gpa2hva" in text for text in gate.audit()), "drgn asked for host addresses"
    assert guest.monitor.running()


def test_several_qvmis_list_the_guests_own_processes_at_the_same_time(guest: Guest) -> None:
    pids = {task.tgid for task in guest.settled_truth().tasks}
    with gateway(guest.qmp) as gate:
        command = (*QVMI, "--json", "--qmp", gate.qmp, "ps")
        running = [
            subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for _ in range(3)
        ]
        for process in running:
            printed, _ = process.communicate(timeout=2 * ANSWER_S)
            assert process.returncode == 0
            assert {row["pid"] for row in json.loads(printed)["items"]} == pids
        assert "pmemsave" not in " ".join(gate.audit()), "the RAM was mapped"


def test_a_qvmi_that_wants_one_moment_gets_it_where_stopping_is_granted(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        listing = qvmi_document("--qmp", gate.qmp, "ps", "--exact")
        assert listing["provenance"]["pause_s"] > 0
        assert any(text.endswith(": stop") for text in gate.audit())
    assert guest.monitor.running()


def test_a_qvmi_that_may_not_stop_the_guest_says_so(guest: Guest) -> None:
    with gateway(guest.qmp) as gate:
        done = qvmi_command("--qmp", gate.qmp, "ps", "--exact")
    assert done.returncode != 0
    assert "needs grant 'pause'" in done.stderr
    assert guest.monitor.running()


# -------------------------------------------------------------------------- who lets the guest run


def test_a_guest_runs_again_when_the_client_that_stopped_it_has_gone(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        with RawQmp.to(gate.qmp) as client:
            assert client.negotiated().execute("stop") == {"return": {}}
            assert not guest.monitor.running()
        wait_until(guest.monitor.running, "the guest does not run")


def test_a_guest_runs_again_when_that_client_is_killed(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        command = (BIN / "qmp-shell", gate.qmp)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as typed:
            assert typed.stdin
            typed.stdin.write("stop\n")
            typed.stdin.flush()
            wait_until(lambda: not guest.monitor.running(), "the guest does not stop")
            typed.kill()
            typed.wait()
            typed.stdin.close()
        wait_until(guest.monitor.running, "the guest does not run")


def test_a_guest_stands_still_until_the_last_of_several_lets_go(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate, RawQmp.to(gate.qmp) as second:
        second.negotiated()
        with RawQmp.to(gate.qmp) as first:
            first.negotiated().execute("stop")
            assert "another client" in second.execute("cont")["error"]["desc"]
            second.execute("stop")
            assert first.execute("cont") == {"return": {}}
            assert not guest.monitor.running()
        assert not guest.monitor.running()
        assert second.execute("cont") == {"return": {}}
        assert guest.monitor.running()


def test_a_guest_that_its_owner_had_stopped_stays_so(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        with gateway(guest.qmp, "--may-pause") as gate:
            with RawQmp.to(gate.qmp) as client:
                client.negotiated()
                assert "its owner" in client.execute("cont")["error"]["desc"]
                client.execute("stop")
            said = gdb(gate, "continue", "p $rip", "detach")
            assert "E01" in said
        assert guest.monitor.execute("query-status")["status"] == "paused"
    finally:
        guest.monitor.execute("cont")


def test_a_gateway_that_is_killed_leaves_a_running_guest(guest: Guest, fork: int) -> None:
    with gateway(guest.qmp, "--may-break") as gate:
        client = RawDebugger.to(gate.gdb)
        assert client.ask(b"?").startswith(b"T05")
        assert client.ask(b"Z0,%x,1" % fork) == b"OK"
        assert not guest.monitor.running()
        gate.kill()
        wait_until(guest.monitor.running, "the guest does not run")
        client.close()
    before = forks(guest)
    assert forks(guest) > before


def test_a_gateway_that_is_ended_leaves_a_running_guest_and_no_socket(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        client = RawQmp.to(gate.qmp).negotiated()
        client.execute("stop")
        assert gate.stop() == 0
        assert guest.monitor.running()
        assert client.hung_up()
        client.close()
        assert re.search(r"stood still for \d+\.\d ms in all", (gate.folder / "said").read_text())
        assert not Path(gate.qmp).exists()
        assert not Path(gate.gdb).exists()


def test_who_holds_the_guest_for_too_long_is_sent_away(guest: Guest, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n[codepacks.gateway]\npause = { longest-s = 0.5 }\n")
    with gateway(guest.qmp, "--policy", str(policy)) as gate, RawQmp.to(gate.qmp) as client:
        client.negotiated().execute("stop")
        assert client.hung_up()
        wait_until(guest.monitor.running, "the guest does not run")


# ------------------------------------------------------------------------------------ what is refused

FORBIDDEN: Final = (
    *("quit", "stop", "cont", "system_reset", "system_powerdown", "query-block", "query-chardev"),
    *("netdev_add", "device_add", "chardev-add", "object-add", "qom-set", "qom-list", "getfd"),
    *("pmemsave", "memsave", "dump-guest-memory", "screendump", "migrate", "savevm", "add_client"),
    *(
        "inject-nmi",
        "input-send-event",
        "xen-save-devices-state",
        "blockdev-add",
        "no-such-command",
    ),
)
FORBIDDEN_LINES: Final = (
    *("quit", "stop", "info registers\nquit", "info registers\rquit", "info registers;quit"),
    *(
        " info registers",
        "info  registers",
        "info registers ",
        "info registers -a\n",
        "info\tregisters",
    ),
    *(
        "info network",
        "info chardev",
        "info roms",
        "gdbserver tcp::1",
        "gpa2hva 0x0",
        "gva2gpa 0x0",
    ),
    *(
        "xp /1xb 0x0\nquit",
        "xp /1xb 0x0+1",
        "xp /1xb $rip",
        "xp /1i 0x0",
        "xp /1xb 0",
        "x /1xb 0x0",
    ),
    *(
        "xp /999999xb 0x0",
        "xp /99999xg 0x0",
        "xp /1xb 0xffffffffffffffffff",
        "xp /8xg 0xfffffffffffffff8",
    ),
    *('pmemsave 0 4096 "/tmp/gateway-wrote-this"', "o /1 0x64 0xfe", "sum 0 1", "info registers\0"),
)
ATTACKS: Final = (
    b'{"execute":"query-status","execute":"quit"}',
    b'{"execute":"quit","execute":"query-status"}',
    b'{"execute":"human-monitor-command","arguments":{"command-line":"info status","command-line":"quit"}}',
    b'{"execute":"query-status","arguments":{},"arguments":{"x":1}}',
    b'{"execute":"\\u0071uit"}',
    b'{"execute":"query-\\u0073tatus"}',
    b'{"\\u0065xecute":"quit"}',
    b'{"execute":"query-status"}{"execute":"quit"}',
    b'{"execute":"query-status"} {"execute":"quit"}',
    b'{"execute":"query-status"},{"execute":"quit"}',
    b'{"exec-oob":"quit"}',
    b'{"exec-oob":"query-status","execute":"quit"}',
    b'{"execute":"query-status","control":{"run-oob":true}}',
    b'{"execute":"query-status","arguments":{"x":1}}',
    b'{"execute":"query-status","arguments":[]}',
    b'{"execute":"query-status","id":NaN}',
    b'{"execute":"query-status","id":1e999}',
    b'{"execute":"query-status","id":"\\ud800"}',
    b'{"execute":"query-status","id":' + b"9" * 5000 + b"}",
    b'{"execute":["quit"]}',
    b'{"execute":"quit\\n"}',
    b'{"execute":""}',
    b"{'execute':'quit'}",
    b"{}",
    b'{"execute":"qom-get","arguments":{"path":"/machine","property":"type"}}',
    b'{"execute":"qom-get","arguments":{"path":"/objects/../machine","property":"type"}}',
    b'{"execute":"qom-get","arguments":{"path":"/objects/secret0","property":"data"}}',
    b'{"execute":"human-monitor-command","arguments":{"command-line":"info registers","cpu-index":"0"}}',
    b'{"execute":"human-monitor-command","arguments":{"command-line":"info registers","cpu-index":true}}',
    b'{"execute":"human-monitor-command","arguments":{"command-line":["quit"]}}',
)
ENDS: Final = (
    b"[1]",
    b'"quit"',
    b"quit",
    b'{"execute":' + b"[" * 40,
    b'{"execute":"query-status","id":' + b"[" * 16 + b"]" * 16 + b"}",
    b'{"execute":"query-status","id":"' + b"x" * 70_000 + b'"}',
    b"GET / HTTP/1.1\r\n\r\n",
)
"""What ends the conversation: nothing behind it could be understood."""


def test_every_attack_over_qmp_is_refused_and_the_machine_is_as_it_was(
    proof_count: Callable[[int], None],
) -> None:
    with bare_qemu("-m", "64") as qemu, gateway(qemu.qmp) as gate:
        before = qemu.monitor.execute("query-chardev")
        with RawQmp.to(gate.qmp) as client:
            client.negotiated()
            for command in FORBIDDEN:
                assert "error" in client.execute(command), command
            for line in FORBIDDEN_LINES:
                assert "error" in client.human(line), line
            for request in ATTACKS:
                refused_one = "error" in client.ask(request + b"\n")
                assert refused_one or "error" in client.line(), request
            assert client.execute("query-status")["return"]["running"] is True
        for data in ENDS:
            with RawQmp.to(gate.qmp) as client:
                client.negotiated().send(data + b"\n")
                assert client.hung_up()
                assert b'"return"' not in client.heard
        refused = sum(text.startswith("refused") for text in gate.audit())
        assert qemu.monitor.running()
        assert not qemu.monitor.events
        assert qemu.monitor.execute("query-chardev") == before
    assert not Path("/tmp/gateway-wrote-this").exists()  # noqa: S108 - it must not be there
    tried = len(FORBIDDEN) + len(FORBIDDEN_LINES) + len(ATTACKS) + len(ENDS)
    assert refused == tried
    proof_count(tried)


def test_nothing_is_done_before_the_negotiation_and_no_capability_is_offered() -> None:
    with bare_qemu("-m", "64") as qemu, ExitStack() as stack:
        gate = stack.enter_context(gateway(qemu.qmp, "--may-pause"))
        with RawQmp.to(gate.qmp) as client:
            assert client.line()["QMP"]["capabilities"] == []
            assert client.execute("stop")["error"]["class"] == "CommandNotFound"
            assert qemu.monitor.running()
            with RawQmp.to(gate.qmp) as other:
                other.negotiated()
                qemu.monitor.execute("stop")
                qemu.monitor.execute("cont")
                wait_until(
                    lambda: bool(other.execute("query-name")) and "RESUME" in other.events,
                    "no event",
                )
            assert "error" in client.execute("qmp_capabilities", enable=["oob"])
            assert client.execute("qmp_capabilities") == {"return": {}}
            assert client.execute("qmp_capabilities")["error"]["class"] == "CommandNotFound"
            assert client.events == []
            qemu.monitor.execute("stop")
            assert client.execute("query-status")["return"]["status"] == "paused"
            wait_until(
                lambda: bool(client.execute("query-name")) and "STOP" in client.events, "no event"
            )


def test_ids_come_back_as_they_were_and_answers_are_not_mixed_up() -> None:
    with bare_qemu("-m", "64") as qemu, gateway(qemu.qmp) as gate, ExitStack() as stack:
        clients = [stack.enter_context(RawQmp.to(gate.qmp)).negotiated() for _ in range(4)]
        ids = [1, "1", None, {"a": [1.5, "\u00e9"]}]
        for number, client in zip(ids, clients, strict=True):
            for command in ("query-version", "query-status", "query-target"):
                request = {"execute": command, "id": number}
                client.send(json.dumps(request).encode() + b"\n")
        for number, client in zip(ids, clients, strict=True):
            answers = [client.line() for _ in range(3)]
            assert [answer["id"] for answer in answers] == [number] * 3
            assert ["qemu" in answers[0]["return"], "running" in answers[1]["return"]] == [
                True,
                True,
            ]
            assert answers[2]["return"] == {"arch": "x86_64"}


def test_a_client_that_does_not_listen_keeps_nobody_waiting() -> None:
    with bare_qemu("-m", "64") as qemu, gateway(qemu.qmp) as gate, ExitStack() as stack:
        deaf = [stack.enter_context(RawQmp.to(gate.qmp)).negotiated() for _ in range(3)]
        for client in deaf:
            client.send(b'{"execute":"query-qmp-schema"}\n' * 40)
        other = stack.enter_context(RawQmp.to(gate.qmp)).negotiated()
        for _ in range(20):
            assert other.execute("query-status")["return"]["running"]
        assert "return" in other.execute("query-qmp-schema")


def is_served(gate: Gateway) -> bool:
    with RawQmp.to(gate.qmp) as client:
        return client.more()


def test_a_hundred_clients_come_and_go_and_a_crowd_is_sent_away() -> None:
    with bare_qemu("-m", "64") as qemu, gateway(qemu.qmp) as gate:
        for _ in range(100):
            with RawQmp.to(gate.qmp) as client, suppress(BrokenPipeError, ConnectionResetError):
                client.send(b'{"execute":"qmp_capab')
        wait_until(lambda: is_served(gate), "nobody is served any more")
        with ExitStack() as stack:
            crowd = [stack.enter_context(RawQmp.to(gate.qmp)) for _ in range(40)]
            served = [client for client in crowd if client.more()]
            assert 1 <= len(served) <= 16
            assert served[0].negotiated().execute("query-status")["return"]["running"]


def test_the_end_of_qemu_ends_the_gateway_and_says_so() -> None:
    with bare_qemu("-m", "64") as qemu, gateway(qemu.qmp) as gate:
        with RawQmp.to(gate.qmp) as client:
            client.negotiated()
            qemu.kill()
            assert client.hung_up()
        assert gate.process.wait(ANSWER_S) == 3
        assert "QEMU is gone" in (gate.folder / "said").read_text()
        assert not Path(gate.qmp).exists()
