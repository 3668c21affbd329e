"""Machines with a gdbstub and without an operating system, whose program is known to the byte."""

import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.multiboot import COUNTS_AT, counting_program

__all__ = ["counter", "counting_machine", "guest_runs", "stub_of", "tells_of_a_stop"]

_STARTS_S = _ANSWERS_S = 30.0


def stub_of(machine: BareQemu) -> str:
    """This starts a gdbstub and is its socket."""
    path = machine.folder / "gdb.sock"
    machine.monitor.human(f"gdbserver unix:{path},server=on,wait=off")
    return str(path)


@contextmanager
def counting_machine(*arguments: str) -> Iterator[BareQemu]:
    """This is a machine whose first vCPU counts in memory, in a shared file named ``ram``."""
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        program = Path(folder) / "program"
        program.write_bytes(counting_program())
        ram = Path(folder) / "ram"
        backend = f"memory-backend-file,id=ram,size=64M,mem-path={ram},share=on"
        memory = ("-object", backend, "-machine", "q35,memory-backend=ram", "-m", "64")
        with bare_qemu(*memory, "-kernel", str(program), *arguments) as machine:
            (machine.folder / "ram").symlink_to(ram)
            deadline = time.monotonic() + _STARTS_S
            # The firmware loads it; that can only be polled for.
            while not counter(machine):
                assert time.monotonic() < deadline, "the program does not start"
                time.sleep(0.005)
            yield machine


def counter(machine: BareQemu) -> int:
    """This is how far the program has counted, seen past the stub."""
    with (machine.folder / "ram").open("rb") as ram:
        ram.seek(COUNTS_AT)
        return int.from_bytes(ram.read(4), "little")


def guest_runs(machine: BareQemu) -> bool:
    """This tells what QMP says of the run state."""
    return bool(machine.monitor.execute("query-status")["running"])


def tells_of_a_stop(path: str) -> bool:
    """This tells whether the stub says that being connected to has stopped the guest, which must run."""
    with socket.socket(socket.AF_UNIX) as stub:
        stub.settimeout(_ANSWERS_S)
        stub.connect(path)
        stub.sendall(b"$qC#b4")
        heard = _until(stub, rb"\$QC[^#]*#..")
        stub.sendall(b"$D#44")
        _until(stub, rb"\$OK#..")
    return b"$T02" in heard


def _until(stub: socket.socket, wanted: bytes) -> bytes:
    heard = b""
    while not re.search(wanted, heard):
        received = stub.recv(1 << 12)
        assert received, "the stub hung up"
        heard += received
    return heard
