"""Of a codepack's process nothing is left when it ends, whatever it has started and however it ends."""

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qvmi.manager import warden

CODE = Path(warden.__file__).read_text()
PYTHON = "/usr/bin/python3"
"""One that every user can run, as that of the tests may lie in a folder of root's."""
WAIT_S = 60.0
A_UID = 61_183
"""A uid that nobody has: the last one below those that a manager gives away."""

DAEMON = """
import os, sys, time
print(os.readlink("/proc/self"), flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", flush=True)
        time.sleep(3600)
    os._exit(0)
sys.stdin.readline()
sys.exit(7)
"""
"""It leaves a daemon behind that has forked twice, and ends when it is told to."""

RUNNING = """
import os, sys
print(os.readlink("/proc/self"), flush=True)
if os.fork() == 0:
    os.setsid()
    print("runs", flush=True)
    while True:
        if os.fork():
            os._exit(0)
sys.stdin.readline()
sys.exit(7)
"""
"""It leaves one behind that is another process at every moment."""

MULTIPLYING = """
import os, sys, time
for count in range(512):
    try:
        if os.fork() == 0:
            time.sleep(3600)
    except OSError:
        break
print(count, flush=True)
sys.stdin.readline()
sys.exit(7)
"""
"""It starts as many as it can, up to some bound, and tells how many."""

AS_ROOT = ("setpriv", "--bounding-set=-sys_admin")
"""Of root, but without the right to make namespaces, as in many a container."""


@dataclass
class Kept:
    """A program with its warden."""

    process: subprocess.Popen[str]
    tag: str

    def lines(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().strip() for _ in range(count)]

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def left(self) -> list[int]:
        """These are the processes that have its tag on their command line, by /proc."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.tag.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


@dataclass(frozen=True)
class Host:
    """What the kernel allows the warden.

    Args:
        enter: what the warden is started by.
        user: who starts it.
        uid: the codepack's own.
    """

    enter: tuple[str, ...] = ()
    user: int | None = None
    uid: int = -1
    needs_root: bool = field(default=True, kw_only=True)


HOSTS = {
    "whoever tests": Host(needs_root=False),
    "root": Host(uid=A_UID),
    "root without namespaces": Host(AS_ROOT, uid=A_UID),
    "root without namespaces or uids": Host(AS_ROOT),
    "nobody": Host(user=A_UID),
}


KNOCKING = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    try:
        one.connect(sys.argv[2])
        print("connected", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def kept(program: str, host: Host, *, hidden: str = "") -> Iterator[Kept]:
    if host.needs_root and os.geteuid() != 0:
        pytest.skip("only root can be another user")
    tag = secrets.token_hex(16)
    uid = str(host.uid)
    process = subprocess.Popen(
        (
            *(*host.enter, PYTHON, "-I", "-S", "-c", CODE, str(os.getpid()), uid, uid, hidden),
            *(PYTHON, "-I", "-c", program, tag, hidden),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        user=host.user,
        start_new_session=True,
    )
    try:
        yield Kept(process, tag)
    finally:
        process.terminate()
        process.communicate()


def end_by_itself(one: Kept, pid: int) -> int:
    del pid
    one.finish()
    return one.process.wait(WAIT_S)


def be_killed(one: Kept, pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return one.process.wait(WAIT_S)


def time_out(one: Kept, pid: int) -> int:
    os.kill(pid, signal.SIGALRM)  # as the kernel does when a look takes too long
    return one.process.wait(WAIT_S)


def be_told_to_end(one: Kept, pid: int) -> int:
    del pid
    one.process.terminate()
    return one.process.wait(WAIT_S)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (end_by_itself, 7),
        (be_killed, -signal.SIGKILL),
        (time_out, -signal.SIGALRM),
        (be_told_to_end, -signal.SIGKILL),
    ],
)
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_daemon_ends_with_the_process_that_left_it_and_the_warden_ends_as_that_did(
    host: Host, end: Callable[[Kept, int], int], code: int
) -> None:
    with kept(DAEMON, host) as one:
        pid, word = one.lines(2)
        assert word == "daemon"
        assert len(one.left()) >= 3, "warden, process and daemon: else there is nothing to end"
        assert end(one, int(pid)) == code
        assert one.left() == []


@pytest.mark.parametrize("host", ["root", "root without namespaces"])
def test_who_is_another_process_at_every_moment_ends_all_the_same(host: str) -> None:
    with kept(RUNNING, HOSTS[host]) as one:
        assert one.lines(2)[1] == "runs"
        assert end_by_itself(one, 0) == 7
        assert not any(one.left() for _ in range(20)), "one look may miss it"


@pytest.mark.parametrize("host", ["root", "root without namespaces"])
def test_a_uid_of_its_own_has_a_bounded_number_of_processes(host: str) -> None:
    with kept(MULTIPLYING, HOSTS[host]) as one:
        (count,) = one.lines(1)
        assert len(one.left()) > 2, "it may start some"
        assert int(count) < 256
        assert end_by_itself(one, 0) == 7
        assert one.left() == []


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_what_is_hidden_is_hidden_from_it_alone_where_there_are_namespaces(host: Host) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="qvmi-warden-") as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        path = f"{folder}/s"
        Path(folder).chmod(0o755)
        listening.bind(path)
        listening.listen()
        Path(path).chmod(0o777)
        with kept(KNOCKING, host, hidden=path) as one:
            (told,) = one.lines(1)
        with kept(KNOCKING, HOSTS["whoever tests"], hidden=f"\n{folder}/not-there") as other:
            assert other.lines(1) == ["FileNotFoundError"], "what is not there does no harm"
        # What unshare(1) can do, the warden can.
        make = ("unshare", "--map-current-user", "-m", "-p", "--fork", "true")
        plain = ("unshare", "-m", "-p", "--fork", "true")
        user = os.geteuid() if host.user is None else host.user
        trial = subprocess.run(
            (*host.enter, *(make if user else plain)), user=host.user, check=False
        )
        assert (told == "ConnectionRefusedError") == (trial.returncode == 0)
        assert told in {"ConnectionRefusedError", "connected"}
        assert Path(path).is_socket()


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_all_of_it_ends_when_the_manager_is_killed(host: Host) -> None:
    with kept(DAEMON, HOSTS["whoever tests"]) as other:
        other.lines(2)
        starter = (
            "import os, subprocess, sys\n"
            "words = [str(os.getpid()) if word == 'PARENT' else word for word in sys.argv[1:]]\n"
            "process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "for _ in range(2): print(process.stdout.readline().decode().strip(), flush=True)\n"
            "sys.stdin.readline()\n"
        )
        tag = secrets.token_hex(16)
        uid = str(host.uid)
        manager = subprocess.Popen(
            (
                *(PYTHON, "-I", "-c", starter, *host.enter),
                *(PYTHON, "-I", "-S", "-c", CODE, "PARENT", uid, uid, ""),
                *(PYTHON, "-I", "-c", DAEMON, tag),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            user=host.user,
        )
        one = Kept(manager, tag)
        assert one.lines(2)[1] == "daemon"
        manager.kill()
        manager.communicate()
        deadline = time.monotonic() + WAIT_S
        while one.left() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert one.left() == []
        assert other.left(), "that of another manager goes on"
