"""What passes an interface, as tcpdump sees it.

References: pcap-savefile(5); packet(7).
"""

import itertools
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.isolation.held_process import stream
from tests.isolation.namespaces import Inside

__all__ = ["Capture", "captured"]

WAIT_S: Final = 60.0
POLL_S: Final = 0.01
FENCE: Final = b"QVMI-FENCE"

_SEND: Final = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((sys.argv[1], 0))
link.send(bytes.fromhex(sys.argv[2]))
"""

_numbers = itertools.count()


@dataclass(slots=True)
class Capture:
    """This is a file of frames that grows while they pass."""

    where: Inside
    interface: str
    file: Path
    fences: list[bytes] = field(default_factory=list)

    def frames(self) -> list[bytes]:
        """These are all frames that have passed, but our own fences."""
        data = self.file.read_bytes()
        found, at = [], 24
        while at + 16 <= len(data):
            (size,) = struct.unpack_from("<I", data, at + 8)
            frame = data[at + 16 : at + 16 + size]
            if len(frame) == size and FENCE not in frame:
                found.append(frame)
            at += 16 + size
        return found

    def wait_for(self, what: bytes, *, count: int = 1) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.file.read_bytes().count(what) < count:
            assert time.monotonic() < deadline, f"{what!r} never passed {self.interface}"
            time.sleep(POLL_S)

    def fence(self, sender: str, target: str) -> None:
        """This sends a frame, and returns when all that came before it is in the file."""
        text = FENCE + b"-%d." % next(_numbers)
        frame = _mac(target) + _mac("525400ffffff") + b"\x88\xb5" + text.ljust(50, b".")
        self.where.run("python3", "-I", "-S", "-c", _SEND, sender, frame.hex())
        self.wait_for(text)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def captured(where: Inside, interface: str, file: Path) -> Iterator[Capture]:
    """This captures what passes an interface while the block lasts."""
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is missing: apt-get install tcpdump")
    command = ("tcpdump", "-i", interface, "-U", "-n", "-Z", "root", "-w", str(file))
    tcpdump = subprocess.Popen((*where.enter, *command), stderr=subprocess.PIPE)
    try:
        said = b""
        while b"listening on" not in said:
            line = stream(tcpdump.stderr).readline()
            assert line, f"tcpdump: {said.decode()}"
            said += line
        yield Capture(where, interface, file)
    finally:
        tcpdump.terminate()
        tcpdump.wait(WAIT_S)
        stream(tcpdump.stderr).close()
