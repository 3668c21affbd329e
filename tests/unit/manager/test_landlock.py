"""What a process can still do to others that has given up what Landlock lets it give up."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.manager import landlock

TRIES = """
import os, socket, sys
from pathlib import Path
from qvmi.manager.landlock import forbid_writing
from qvmi.manager.reopening import ways_to_connect

folder, port, name, path, parent, confined = sys.argv[1:]

def tried(work):
    try:
        work()
    except PermissionError:
        return "forbidden"
    return "done"

def connect(family, address):
    with socket.socket(family) as one:
        one.connect(address)

if confined == "yes":
    forbid_writing(but_below=[Path(folder) / "own"])
print(tried(lambda: Path(folder, "new").touch()))
print(tried(lambda: Path(folder, "own", "new").touch()))
print(tried(lambda: connect(socket.AF_INET, ("127.0.0.1", int(port)))))
print(tried(lambda: connect(socket.AF_UNIX, "\\0" + name)))
print(tried(lambda: os.kill(int(parent), 0)))
print(tried(lambda: connect(socket.AF_UNIX, path)))
print(len(ways_to_connect([path, path + "-not"])))
print(len(ways_to_connect(["127.0.0.1:4444"])))
"""
ALL = ["done"] * 6 + ["1", "1"]


@pytest.mark.parametrize("confined", ["no", "yes"])
def test_gives_up_files_and_as_the_kernel_can_tcp_sockets_without_a_path_and_signals(
    tmp_path: Path, confined: str
) -> None:
    version = landlock.abi()
    if not version:
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "own").mkdir()
    name = f"qvmi-landlock-{os.getpid()}"
    path = str(tmp_path / "s")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as named,
    ):
        abstract.bind(f"\0{name}")
        named.bind(path)
        abstract.listen()
        named.listen()
        port = str(tcp.getsockname()[1])
        words = (str(tmp_path), port, name, path, str(os.getpid()), confined)
        done = subprocess.run(
            (sys.executable, "-c", TRIES, *words), capture_output=True, text=True, check=True
        )
    expected = list(ALL)
    if confined == "yes":
        for place, least in {0: 1, 2: 4, 3: 6, 4: 6}.items():
            expected[place] = "forbidden" if version >= least else "done"
        expected[7] = "0" if version >= 4 else "1"
    assert done.stdout.split() == expected, "a socket in a folder is what Landlock does not cover"
