"""What cannot be examined is an error that says so; what a user without rights sees is no proof."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from qvmi.audit import AuditLog
from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.manager.isolation.anonymous import admits_anybody
from qvmi.manager.isolation.check import Verdict
from qvmi.manager.isolation.examine import examine
from qvmi.manager.proven_isolation import bus_of
from qvmi.qmp.open import open_monitor
from tests.asynchronous import asynchronous, until
from tests.command_line import QVMI, environment, qvmi, qvmi_document
from tests.guests.bare_qemu import BareQemu
from tests.isolation.bench import Bench
from tests.repository.tree import ROOT
from tests.unit.bus.raw_mqtt import greet_raw

GREETING = '{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0}},"capabilities":[]}}\n'
SERVE = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    client, _ = server.accept()
    client.sendall(sys.argv[2].encode())
    for line in client.makefile("rb"):
        number = line.rpartition(b'"id":')[2].rstrip(b"}\\n")
        greets = b"qmp_capabilities" in line
        said = b'"return":{}' if greets else b'"error":{"class":"GenericError","desc":"no"}'
        client.sendall(b"{" + said + b',"id":' + number + b"}\\n")
"""
LOOK = """
import sys
sys.path.insert(0, sys.argv[1])
from qvmi.manager.isolation.facts import Unseen
from qvmi.manager.isolation.namespaces import links_of, unix_sockets
from qvmi.manager.isolation.processes import descriptors_of, inode_of_namespace
own = int(sys.argv[2])
network = inode_of_namespace(own)
print([link.name for link in links_of(own, network)], unix_sockets(own, network))
for hidden in (descriptors_of(1), inode_of_namespace(1), links_of(1, 1), unix_sockets(1, 1)):
    assert isinstance(hidden, Unseen) and "root" in hidden.reason, hidden
"""


def refused(machine: BareQemu, *more: str) -> tuple[int, str]:
    done = qvmi("--qmp", machine.qmp, "doctor", *more)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_broker_that_is_not_there_is_told(bench: Bench, tmp_path: Path) -> None:
    machine = bench.machine()
    ended = subprocess.Popen(("true",))
    ended.wait()
    code, said = refused(machine, "--broker", str(tmp_path))
    assert (code, "no broker listens there" in said) == (2, True)
    code, said = refused(machine, "--broker", str(ended.pid))
    assert (code, f"no broker with pid {ended.pid}" in said) == (4, True)
    for pid in (1, machine.pid, os.getpid()):
        code, said = refused(machine, "--broker", str(pid))
        assert (code, f"(pid {pid}) is no mosquitto" in said) == (2, True)


def test_a_machine_that_is_not_there_is_told(bench: Bench) -> None:
    machine = bench.machine()
    machine.kill()
    code, said = refused(machine)
    assert (code, "is QEMU running?" in said) == (3, True)


def test_a_broker_that_ends_under_the_look_is_told(bench: Bench) -> None:
    """The broker is stopped, so that the look waits for its answer, and killed then."""
    machine, broker = bench.machine(), bench.broker()
    os.kill(broker.pid, signal.SIGSTOP)
    command = (*QVMI, "--qmp", machine.qmp, "doctor", "--broker", str(broker.pid))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as looking:
        bench.until(lambda: is_waited_for(broker.pid), "the broker was not asked")
        os.kill(broker.pid, signal.SIGKILL)
        _, said = looking.communicate(timeout=60)
    assert (looking.returncode, "runs (any more)" in said) == (4, True)


@asynchronous
async def test_the_look_at_a_broker_of_ours_is_not_audited_as_a_strangers(
    bench: Bench, tmp_path: Path
) -> None:
    machine = bench.machine()
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto([Account.of_codepack("web", "pack")]) as broker:
            bus = bus_of(broker)
            monitor = await open_monitor(machine.qmp)
            report = await examine(monitor, bus)
            await monitor.close()
            assert report.verdict is Verdict.PROVEN
            greet_raw(broker.socket, None)
            await until(lambda: broker.log.refused.total() == 1)
            assert " stranger, 1 until now: not authorised" in (tmp_path / "audit.log").read_text()
            # Whoever says again what was said once is a stranger.
            assert (
                await asyncio.to_thread(admits_anybody, str(broker.socket), probe=bus.probe)
                is False
            )
            await until(lambda: broker.log.refused.total() == 2)
    assert " stranger, 2 until now: not authorised" in (tmp_path / "audit.log").read_text()


def is_waited_for(pid: int) -> bool:
    """This tells whether somebody waits to be accepted, as ss tells of a listening socket's queue."""
    listed = subprocess.run(("ss", "-xlnpH"), capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if f"pid={pid}," in line]
    return any(int(row[2]) > 0 for row in rows)


def test_a_socket_that_is_no_qemus_is_not_taken_for_one(bench: Bench) -> None:
    path = bench.new_folder() / "s"
    greeting = b'{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0}},"capabilities":[]}}\n'
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        threading.Thread(target=greet, args=(server, greeting), daemon=True).start()
        done = qvmi("--qmp", str(path), "--json", "doctor")
    assert done.returncode == 4
    assert f"(pid {os.getpid()}) is no QEMU" in done.stdout


def test_a_program_that_calls_itself_qemu_is_not_taken_for_one(bench: Bench) -> None:
    path = bench.new_folder() / "s"
    with subprocess.Popen(
        ("/usr/bin/qemu-system-x86_64", "-c", SERVE, str(path), GREETING),
        executable=str(Path(sys.executable).resolve()),
        env={"PYTHONHOME": sys.base_prefix},
    ) as pretender:
        bench.stack.callback(pretender.kill)
        bench.until(path.is_socket, "it does not listen")
        done = qvmi("--qmp", str(path), "--json", "doctor")
        pretender.kill()
    assert f"qemu-system-x86_64 (pid {pretender.pid}) is no QEMU" in done.stdout
    assert done.returncode == 4


def test_a_machine_that_is_not_the_one_behind_the_socket_is_not_taken_for_it(bench: Bench) -> None:
    machine, other = bench.machine(), bench.machine()
    examined = bench.examine(machine, None, "--pid", str(other.pid))
    assert examined.code == 4
    assert any("is not at the other end of our QMP connection" in e for e in examined.open)
    assert bench.examine(machine, None, "--pid", str(machine.pid)).code == 0


def greet(server: socket.socket, greeting: bytes) -> None:
    """This greets as QEMU does, and refuses all that it is asked."""
    client, _ = server.accept()
    with client, client.makefile("rb") as lines:
        client.sendall(greeting)
        for line in lines:
            number = line.rpartition(b'"id":')[2].rstrip(b"}\n")
            answer = b'"return":{}' if b"qmp_capabilities" in line else REFUSAL
            client.sendall(b"{" + answer + b',"id":' + number + b"}\n")


REFUSAL = b'"error":{"class":"GenericError","desc":"no"}'


def test_the_guest_runs_on_and_nothing_of_it_is_changed(bench: Bench) -> None:
    machine, broker = bench.machine("-nic", "user,id=u"), bench.broker()
    machine.monitor.execute("cont")
    before = machine.monitor.human("info network")
    bench.examine(machine, broker)
    assert machine.monitor.running()
    assert machine.monitor.human("info network") == before


def test_a_user_without_rights_looks_into_a_namespace_of_its_own_and_no_other(
    bench: Bench,
) -> None:
    place = bench.new_folder(0o755)
    shutil.copytree(ROOT / "qvmi", place / "qvmi", ignore=shutil.ignore_patterns("__pycache__"))
    alone = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with subprocess.Popen(
        (*alone, "unshare", "--user", "--map-root-user", "--net", "cat"), stdin=subprocess.PIPE
    ) as holder:
        own = Path("/proc/self/ns/net").resolve()
        bench.until(
            lambda: Path(f"/proc/{holder.pid}/ns/net").resolve() != own, "no namespace of its own"
        )
        done = subprocess.run(
            (*alone, "/usr/bin/python3", "-B", "-c", LOOK, str(place), str(holder.pid)),
            capture_output=True,
            text=True,
            check=False,
        )
        holder.communicate()
    assert (done.returncode, done.stdout, done.stderr) == (0, "['lo'] ()\n", "")


def test_processes_that_hide_what_they_have_are_told(bench: Bench) -> None:
    """As another user: of the tests' own processes, and of all where /proc does not show them."""
    place = bench.new_folder(0o755)
    shutil.copytree(ROOT / "qvmi", place / "qvmi", ignore=shutil.ignore_patterns("__pycache__"))
    look = f"setpriv --reuid 65534 --regid 65534 --clear-groups /usr/bin/python3 -B -c '{CROWD}'"
    hide = "mount -t proc -o hidepid=2 proc /proc"
    for script in (f"{look} {place}", f"{hide} && {look} {place}"):
        done = subprocess.run(
            ("unshare", "--mount", "sh", "-c", script), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        words = "does not show the" if script.startswith("mount") else "do not show what"
        assert f"{words} " in done.stdout


CROWD = """
import sys
sys.path.insert(0, sys.argv[1])
from qvmi.manager.isolation.crowd import Crowd
crowd = Crowd((), {}, {}, 0)
crowd.look()
print(crowd.hidden)
"""


def test_without_a_machine_the_host_is_checked(tmp_path: Path) -> None:
    document = qvmi_document("doctor")
    assert document["isolation"] is None
    names = [check["name"] for check in document["setup"]["checks"]]
    assert names[:3] == ["Python", "QEMU", "mosquitto"]
    done = qvmi("doctor", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "apt install qemu-system-x86" in done.stdout


def test_the_text_names_the_way_and_the_fix(bench: Bench) -> None:
    broker = bench.broker(without=["acl_file"])
    done = qvmi("--qmp", bench.machine().qmp, "doctor", "--broker", str(broker.pid))
    assert done.returncode == 1
    assert "NOT PROVEN: there is a way" in done.stdout
    assert f"  {broker.folder}/mosquitto.conf names no access list" in done.stdout
    assert "-> name an acl_file" in done.stdout
    clean = qvmi("--qmp", bench.machine().qmp, "doctor", "--broker", str(bench.broker().socket))
    assert (clean.returncode, "PROVEN: no way from the machine" in clean.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("doctor", "--broker", "1"), "name it with --qmp"),
        (("doctor", "--pid", "1"), "name it with --qmp"),
        (("--qmp", "x", "doctor", "--bridge", "b"), "name its broker"),
        (("--dump", "x", "doctor"), "cannot be asked of a dump"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = qvmi(*arguments)
    assert (done.returncode, words in done.stderr) == (2, True)


def test_a_name_that_is_no_text_is_written_as_one(bench: Bench) -> None:
    examined = bench.examine(bench.machine(), bench.broker(), "--bridge", "qvmi\udcff")
    assert examined.code == 4
    names = [check["name"] for check in examined.document["isolation"]["checks"]]
    assert "bridge qvmi\\xff leads to service VMs alone" in names


def test_a_name_that_would_act_on_the_terminal_does_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="qvmi-\x1b[31m") as folder:
        done = qvmi("--qmp", f"{folder}/q", "doctor")
    assert "\x1b" not in done.stderr + done.stdout
    assert "\\x1b" in done.stderr
