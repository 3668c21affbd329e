"""Finding QEMUs: processes that only look like one, with command lines that no QEMU would take."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.machine.find import FoundMachine, SocketState, find_machines
from qvmi.qmp.address import LibvirtAddress
from qvmi.qmp.command_line import Purpose

SLEEPER = Path(sys.executable).resolve()


@contextmanager
def impostor(*arguments: str | bytes, cwd: Path | None = None) -> Iterator[int]:
    """A process that has the name and the arguments of a QEMU, and waits."""
    with subprocess.Popen(
        ["qemu-system-x86_64", "-I", "-S", "-c", "print(flush=True); input()", *arguments],
        executable=SLEEPER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=cwd,
    ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()  # it has its arguments once it speaks
            yield child.pid
        finally:
            child.communicate(b"\n")


def found(pid: int) -> FoundMachine:
    (one,) = [machine for machine in find_machines() if machine.process.pid == pid]
    return one


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="qvmi-") as name:
        yield Path(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listening(stack: ExitStack, path: Path) -> socket.socket:
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(path))
    server.listen(1)
    return server


def test_tells_free_sockets_from_busy_and_missing_ones(stack: ExitStack, folder: Path) -> None:
    listening(stack, folder / "free")
    busy = listening(stack, folder / "busy")
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(busy.getsockname())
    stack.enter_context(busy.accept()[0])
    names = ("missing", "busy", "free")
    arguments = [part for name in names for part in ("-qmp", f"unix:{folder / name},server=on")]
    with impostor(*arguments) as pid:
        machine = found(pid)
    assert [(each.purpose, each.state) for each in machine.sockets] == [
        (Purpose.QMP, SocketState.UNSEEN),
        (Purpose.QMP, SocketState.BUSY),
        (Purpose.QMP, SocketState.FREE),
    ]
    assert machine.reachable_at == UnixAddress(str(folder / "free"))
    assert machine.advice == f"--qmp {folder / 'free'}"


def test_a_relative_path_is_told_as_we_reach_it(stack: ExitStack, folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)
    try:
        listening(stack, Path("q.sock"))
    finally:
        os.chdir(here)
    with impostor("-qmp", "unix:q.sock,server=on", cwd=folder) as pid:
        assert found(pid).reachable_at == UnixAddress(str(folder / "q.sock"))


def test_tells_whether_a_port_serves_somebody(stack: ExitStack) -> None:
    free = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    busy = server.getsockname()[1]
    stack.enter_context(socket.create_connection(server.getsockname()))
    stack.enter_context(server.accept()[0])
    served = [("-qmp", f"tcp:127.0.0.1:{port},server=on") for port in (busy, free)]
    with impostor(*(part for option in served for part in option)) as pid:
        machine = found(pid)
    assert [each.state for each in machine.sockets] == [SocketState.BUSY, SocketState.FREE]
    assert machine.reachable_at == TcpAddress("localhost", free)


def test_reads_the_config_file_and_the_name(stack: ExitStack, folder: Path) -> None:
    listening(stack, folder / "q")
    (folder / "vm.cfg").write_text(
        f'[chardev "c"]\nbackend = "socket"\npath = "{folder}/q"\nserver = "on"\n'
        '[mon "m"]\nchardev = "c"\nmode = "control"\n'
        '[machine]\ntype = "q35"\n[name]\nguest = "web"\n'
    )
    with impostor("-readconfig", "vm.cfg", cwd=folder) as pid:
        machine = found(pid)
    assert (machine.name, machine.machine) == ("web", "q35")
    assert machine.reachable_at == UnixAddress(str(folder / "q"))


@pytest.mark.parametrize("sort", ["fifo", "folder", "device", "missing", "binary"])
def test_a_config_file_that_is_none_does_no_harm(folder: Path, sort: str) -> None:
    path = folder / "vm.cfg"
    if sort == "fifo":
        os.mkfifo(path)
    elif sort == "folder":
        path.mkdir()
    elif sort == "device":
        path.symlink_to("/dev/zero")
    elif sort == "binary":
        path.write_bytes(bytes(range(256)) * 100)
    with impostor("-readconfig", str(path), "-name", "web") as pid:
        assert found(pid).name == "web"


def test_what_libvirt_holds_is_reached_through_libvirt() -> None:
    monitor = ("-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off")
    served = ("-mon", "chardev=charmonitor,id=monitor,mode=control")
    with impostor("-name", "guest=web1,debug-threads=on", *monitor, *served) as pid:
        machine = found(pid)
    assert machine.domain == LibvirtAddress("web1")
    assert machine.advice == "--qmp libvirt:web1"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((), "no QMP socket: start it with -qmp"),
        (("-monitor", "unix:/nowhere/m,server"), "only a human monitor"),
        (("-qmp", "unix:/nowhere/q,server"), "cannot be seen from here"),
    ],
)
def test_says_what_keeps_from_attaching(arguments: tuple[str, ...], advice: str) -> None:
    with impostor(*arguments) as pid:
        machine = found(pid)
    assert machine.reachable_at is None
    assert advice in machine.advice


@pytest.mark.parametrize(
    "arguments",
    [
        (b"-name", b"\xff\x1b[31m\n[red]"),
        ("-qmp",),
        ("-qmp", "unix:" + "x" * 200 + ",server=on"),
        ("-chardev", ",,,=,id=a", "-mon", "chardev=a,mode=control"),
        ("-readconfig", "", "-readconfig", "/proc/self/mem"),
        tuple("-qmp" for _ in range(1000)),
        ("-name", "x" * 100_000),
    ],
)
def test_an_odd_command_line_does_no_harm(arguments: tuple[str | bytes, ...]) -> None:
    with impostor(*arguments) as pid:
        machine = found(pid)
    assert machine.advice
    assert repr(machine).isprintable()


def test_a_process_that_has_ended_is_left_out() -> None:
    with impostor() as pid:
        pass
    assert pid not in {machine.process.pid for machine in find_machines()}
