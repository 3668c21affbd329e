"""A QEMU whose vCPU stands in the memory of a small Windows, as far as it is written by hand.

References: Multiboot Specification 0.6.96, 3.1; Intel SDM volume 3A, 9.8.5 (entering IA-32e mode) and 2.4.3
(IDTR); volume 2 for the opcodes.
"""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab.errors import LabError
from tests.synthetic.windows import IDT, WindowsMemory

__all__ = ["windows_machine"]

START: Final = 8 << 20
"""Where its memory lies: behind all that the firmware writes to."""
_RAM_MIB: Final = 32
_LOADED_AT: Final = 0x10_0000
_CODE_AT: Final = _LOADED_AT + 0x60
_GDT: Final = struct.pack("<QQ", 0, 0x00AF_9A00_0000_FFFF)
"""Nothing, then code of 64 bits."""
_GDT_AT, _GDTR_AT, _IDTR_AT = _LOADED_AT + 0x20, _LOADED_AT + 0x38, _LOADED_AT + 0x40
_STARTS_S: Final = 60.0


@contextmanager
def windows_machine(memory: WindowsMemory, folder: Path) -> Iterator[BareQemu]:
    """This starts it, and waits until its registers are those of a Windows.

    Args:
        memory: its memory, which begins at `START`.
        folder: where its files are, and what is removed afterwards.
    """
    memory.tables.map(0, 0, 2 << 20)  # where the program below is when paging begins
    ram, program = folder / "ram", folder / "program"
    with ram.open("wb") as file:
        file.truncate(_RAM_MIB << 20)
        file.seek(START)
        file.write(memory.ram.buffer[:])
    program.write_bytes(_program(memory.tables.root))
    backend = f"memory-backend-file,id=ram,mem-path={ram},size={_RAM_MIB}M,share=on"
    machine = ("-machine", "q35,memory-backend=ram", "-m", f"{_RAM_MIB}M", "-cpu", "qemu64")
    with bare_qemu(*machine, "-object", backend, "-kernel", str(program), folder=folder) as qemu:
        _wait_until_there(qemu)
        yield qemu


def _wait_until_there(qemu: BareQemu) -> None:
    deadline = time.monotonic() + _STARTS_S
    while f"{IDT:016x}" not in qemu.monitor.human("info registers"):
        if time.monotonic() > deadline:
            raise LabError("the program does not reach its end")
        time.sleep(0.01)


def _program(root: int) -> bytes:
    """This is a file for ``-kernel``: it enters 64-bit mode by these page tables, loads IDTR, and halts."""
    magic, kludge = 0x1BADB002, 1 << 16
    fields = (magic, kludge, -(magic + kludge) & 0xFFFFFFFF, _LOADED_AT, _LOADED_AT, 0, 0, _CODE_AT)
    data = struct.pack("<8I", *fields) + _GDT
    data = data.ljust(_GDTR_AT - _LOADED_AT, b"\0") + struct.pack("<HI", len(_GDT) - 1, _GDT_AT)
    data = data.ljust(_IDTR_AT - _LOADED_AT, b"\0") + struct.pack("<HQ", 0xFFF, IDT)
    code = b"".join(
        (
            b"\x0f\x01\x15" + struct.pack("<I", _GDTR_AT),  # lgdt
            b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0",  # CR4.PAE
            b"\xb8" + struct.pack("<I", root) + b"\x0f\x22\xd8",  # CR3
            b"\xb9\x80\x00\x00\xc0\x0f\x32\x0d\x00\x01\x00\x00\x0f\x30",  # EFER.LME
            b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0",  # CR0.PG
        )
    )
    behind_jump = _CODE_AT + len(code) + 7
    code += b"\xea" + struct.pack("<IH", behind_jump, 8)
    code += b"\x0f\x01\x1c\x25" + struct.pack("<I", _IDTR_AT) + b"\xf4\xeb\xfd"  # lidt; hlt; jmp -3
    return data.ljust(_CODE_AT - _LOADED_AT, b"\0") + code
