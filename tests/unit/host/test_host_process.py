"""Processes as /proc tells of them, odd and vanished ones too."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.host.host_process import HostProcess, host_process, pids, socket_owners


def test_reads_a_process_of_our_own() -> None:
    mine = host_process(os.getpid())
    assert mine is not None
    assert (mine.pid, mine.uid) == (os.getpid(), os.getuid())
    assert mine.arguments == tuple(Path("/proc/self/cmdline").read_text().split("\0")[:-1])
    assert os.getpid() in pids()


def test_arguments_that_are_no_text_come_through() -> None:
    odd = b"\xff\x1b[31m\n"
    program = "print(flush=True); input()"  # it has its arguments once it speaks
    with subprocess.Popen(
        [sys.executable, "-c", program, odd, ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            process = host_process(child.pid)
        finally:
            child.communicate(b"\n")
    assert process is not None
    assert [os.fsencode(argument) for argument in process.arguments[-2:]] == [odd, b""]


def test_a_zombie_has_no_program_and_a_gone_process_is_none() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = host_process(child.pid)
    child.wait()
    assert zombie is not None
    assert (zombie.program, zombie.is_qemu) == ("", False)
    assert host_process(child.pid) is None


@pytest.mark.parametrize(
    ("path", "is_qemu"),
    [
        ("/usr/bin/qemu-system-x86_64", True),
        ("qemu-system-aarch64", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("/usr/bin/qemu-img", False),
        ("/usr/bin/qemu-x86_64", False),
        ("/usr/bin/python3", False),
        ("", False),
    ],
)
def test_knows_system_emulators_by_their_name(path: str, is_qemu: bool) -> None:  # noqa: FBT001
    assert HostProcess(1, 0, (path,)).is_qemu is is_qemu


def loader() -> Path:
    """This is this machine's dynamic loader, by the name that its programs know it by."""
    places = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
    return next(path for path in map(Path, places) if path.exists())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--inhibit-cache",),
        ("--inhibit-cache", "--argv0", "other", "--library-path", "/opt/qemu/lib"),
    ],
)
def test_a_program_that_a_loader_runs_is_that_program(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.symlink_to(shutil.which("cat") or "")
    with subprocess.Popen(
        [loader(), *options, program, "-", "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"?")
        child.stdout.read(1)  # it runs once it answers
        process = host_process(child.pid)
        child.communicate()
    assert process is not None
    assert process.arguments == (str(program), "-", "/dev/null")
    assert (process.is_qemu, process.program) == (True, "qemu-system-x86_64")


def test_finds_who_has_a_socket() -> None:
    with socket.socket() as one, socket.socket() as other:
        inodes = {os.fstat(each.fileno()).st_ino for each in (one, other)}
        assert socket_owners(inodes | {0}, timeout_s=10) == dict.fromkeys(inodes, os.getpid())
        assert socket_owners(inodes, timeout_s=0) == {}
