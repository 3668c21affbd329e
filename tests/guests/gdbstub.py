"""The registers of a stopped guest by another way: QEMU's gdbstub, in the few packets that needs.

References: GDB manual, "Remote Protocol: Packets"; QEMU ``gdb-xml/i386-64bit.xml`` for the order and
sizes of what ``g`` returns.
"""

import socket
import struct
from pathlib import Path

from tests.guests.lab.monitor import Monitor

__all__ = ["stub_registers"]

_ANSWERS_S = 20.0
_LONG = (
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    *(f"r{n}" for n in range(8, 16)),
    "rip",
)
_SHORT = ("rflags", "cs", "ss", "ds", "es", "fs", "gs")
_SYSTEM = ("fs_base", "gs_base", "kernel_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer")


def stub_registers(monitor: Monitor, folder: Path, vcpus: int) -> list[dict[str, int]]:
    """This reads each vCPU's registers; the guest must be stopped, and is afterwards."""
    path = folder / "stub.sock"
    monitor.human(f"gdbserver unix:{path},server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as stub:
        stub.settimeout(_ANSWERS_S)
        stub.connect(str(path))
        found = []
        for thread in range(1, vcpus + 1):
            assert _ask(stub, f"Hg{thread:x}") == b"OK"
            found.append(_values(bytes.fromhex(_ask(stub, "g").decode())))
    monitor.human("gdbserver none")
    return found


def _values(raw: bytes) -> dict[str, int]:
    layout = struct.Struct(f"<{len(_LONG)}Q{len(_SHORT)}I{len(_SYSTEM)}Q")
    return dict(zip((*_LONG, *_SHORT, *_SYSTEM), layout.unpack_from(raw), strict=True))


def _ask(stub: socket.socket, packet: str) -> bytes:
    checksum = sum(packet.encode()) & 0xFF
    stub.sendall(f"${packet}#{checksum:02x}".encode())
    heard = b""
    while b"#" not in heard[:-2]:
        heard += stub.recv(1 << 16)
    stub.sendall(b"+")
    return heard[heard.index(b"$") + 1 : heard.index(b"#")]
