"""The program that carries a service VM's connection to the broker's socket."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qvmi.manager.bus_network import relay

END_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(64)
        listener.settimeout(END_S)
        yield listener


def started(folder: Path, stack: ExitStack, seat: int = 0) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-I", "-S", relay.__file__, str(folder / "s"), str(seat)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def test_bytes_go_both_ways_and_an_end_is_passed_on(tmp_path: Path, broker: socket.socket) -> None:
    with ExitStack() as stack:
        process = started(tmp_path, stack)
        connection = stack.enter_context(broker.accept()[0])
        connection.settimeout(END_S)
        assert process.stdin is not None
        process.stdin.write(b"question")
        process.stdin.close()
        asked = b""
        while data := connection.recv(64):
            asked += data
        connection.sendall(b"answer")
        connection.close()
        assert asked == b"question"
        assert process.stdout is not None
        assert process.stdout.read() == b"answer"
        assert process.wait(END_S) == 0


def test_a_service_vm_has_a_bounded_number_of_connections_and_takes_none_of_anothers(
    tmp_path: Path, broker: socket.socket
) -> None:
    with ExitStack() as stack:
        for _ in range(relay.MAX_CONNECTIONS):
            started(tmp_path, stack)
            stack.enter_context(broker.accept()[0])
        refused = started(tmp_path, stack)
        assert refused.wait(END_S) == 1
        assert refused.stderr is not None
        assert b"too many connections" in refused.stderr.read()
        started(tmp_path, stack, seat=1)
        stack.enter_context(broker.accept()[0])


def test_a_broker_that_is_not_there_ends_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert started(tmp_path, stack).wait(END_S) == 1
