"""Which sockets of a QEMU's a codepack must not reach: all of them, or it is said that some were not seen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.manager.qemu_sockets import QemuSockets, qemu_sockets

LISTEN = """
import os, socket, sys
os.chdir(sys.argv[1])
server = socket.socket(socket.AF_UNIX)
server.bind("relative")
server.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("entrance", [(), ("unshare", "--net")], ids=["here", "another network"])
def test_sockets_are_seen_in_whatever_network_namespace(
    tmp_path: Path, entrance: tuple[str, ...]
) -> None:
    if entrance and os.geteuid() != 0:
        pytest.skip("only root can make a network namespace and look into it")
    command = (*entrance, sys.executable, "-c", LISTEN, str(tmp_path))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        found = qemu_sockets(process.pid, "/run/vm/qmp.sock")
        process.stdin.close()
    assert found == QemuSockets(("/run/vm/qmp.sock", str(tmp_path / "relative")))


@pytest.mark.parametrize("is_known", [True, False])
def test_of_a_process_that_cannot_be_looked_at_it_is_said_that_there_may_be_more(
    is_known: bool,  # noqa: FBT001 - a case of the test
) -> None:
    with subprocess.Popen(("true",)) as process:
        process.wait()
    found = qemu_sockets(process.pid if is_known else None, "127.0.0.1:4444")
    assert found.places == ("127.0.0.1:4444",)
    assert found.unseen
