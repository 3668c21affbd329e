"""The registers of an x86-64 vCPU, as QEMU's human monitor prints them and its gdbstub tells them.

References: QEMU ``target/i386/cpu-dump.c`` (``x86_cpu_dump_state``), 7.2 to 10.1; Intel SDM volume
3A, sections 2.5 (CR0 to CR4) and 2.2.1 (EFER); QEMU ``gdb-xml/i386-64bit.xml`` and
``target/i386/gdbstub.c``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.arch.register_dump import malformed, vcpu_dumps
from qvmi.errors import GdbstubProtocolError

__all__ = ["Registers", "parse_registers", "registers_of_stub", "stub_name"]

_CR0_PAGING: Final = 1 << 31
_CR4_LA57: Final = 1 << 12
_EFER_LONG_MODE_ACTIVE: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Registers:
    """This is what one x86-64 vCPU held at one moment.

    QEMU prints the width of the code that runs: outside of 64-bit code the general registers are
    cut to 32 bits, and what is not printed at all is None here.

    Args:
        index: QEMU's number of the vCPU.
        r8: and up to `r15`: None unless 64-bit code runs.
        rip: in real mode the offset in the code segment.
        fs_base: the FS segment's base; None in compatibility mode (32-bit code under a 64-bit
            kernel), where QEMU prints only its lower half.
        gs_base: as `fs_base`; the kernel's per-CPU area only while the kernel runs (`cpl` 0).
        kernel_gs_base: the GS base that SWAPGS brings; None where the source does not tell it, as
            the human monitor does not.
        cr2: the address of the last page fault.
        cr3: the physical address of the page-table root, with flags or PCID in bits 0..11.
        gdt_base: where the global descriptor table is; this and what follows it is None from the
            gdbstub, which does not tell, but for `cpl`.
        idt_base: where the interrupt descriptor table is; `idt_limit` is its last byte's offset.
        cpl: the privilege level; 3 is user mode.
        smm: the vCPU is in system management mode, with a memory map of its own.
        halted: it waits for an interrupt.
    """

    index: int
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int | None
    r9: int | None
    r10: int | None
    r11: int | None
    r12: int | None
    r13: int | None
    r14: int | None
    r15: int | None
    rip: Va
    rflags: int
    es: int
    cs: int
    ss: int
    ds: int
    fs: int
    gs: int
    fs_base: Va | None
    gs_base: Va | None
    kernel_gs_base: Va | None
    cr0: int
    cr2: Va
    cr3: int
    cr4: int
    efer: int
    gdt_base: Va | None
    gdt_limit: int | None
    idt_base: Va | None
    idt_limit: int | None
    cpl: int
    smm: bool | None
    halted: bool | None

    @property
    def root_register(self) -> int | None:
        """This is the register that holds the page-table root."""
        return self.cr3

    @property
    def paging(self) -> bool:
        """This tells whether addresses are translated by page tables (CR0.PG)."""
        return bool(self.cr0 & _CR0_PAGING)

    @property
    def long_mode(self) -> bool:
        """This tells whether IA-32e paging is active (EFER.LMA), whatever code runs just now."""
        return bool(self.efer & _EFER_LONG_MODE_ACTIVE)

    @property
    def la57(self) -> bool:
        """This tells whether page tables have five levels (CR4.LA57)."""
        return bool(self.cr4 & _CR4_LA57)


_CR0_PROTECTION: Final = 1
_RFLAGS_VM: Final = 1 << 17
_STUB_NAMES: Final = {"eflags": "rflags", "k_gs_base": "kernel_gs_base"}
_STUB_SILENT: Final = ("gdt_base", "gdt_limit", "idt_base", "idt_limit", "smm", "halted")


def registers_of_stub(index: int, values: Mapping[str, int]) -> Registers:
    """This is what the gdbstub tells of one vCPU, by the names of its target description.

    Outside of 64-bit code the stub cuts the general registers to 32 bits; whether such code runs it
    does not tell, so that in compatibility mode `Registers.r8` to ``r15`` are 0.

    Raises:
        GdbstubProtocolError: a register is missing.
    """
    named = {_STUB_NAMES.get(name, name): value for name, value in values.items()}
    named["index"] = index
    fields: dict[str, object] = {**named, **dict.fromkeys(_STUB_SILENT)}
    fields["cpl"] = _privilege(named)
    if not named.get("efer", 0) & _EFER_LONG_MODE_ACTIVE:
        fields |= dict.fromkeys(name.lower() for name in _EXTENDED)
    try:
        return msgspec.convert(fields, Registers)
    except msgspec.ValidationError as error:
        raise GdbstubProtocolError("g", f"vCPU {index}: {error}") from error


def stub_name(name: str) -> str:
    """This is what the gdbstub calls a register of `Registers`; most have the same name there."""
    return next((theirs for theirs, ours in _STUB_NAMES.items() if ours == name), name)


def _privilege(named: Mapping[str, int]) -> int:
    """This is the current privilege level; Intel SDM volume 3A, sections 5.5 and 20.1."""
    if not named.get("cr0", 0) & _CR0_PROTECTION:
        return 0
    return 3 if named.get("rflags", 0) & _RFLAGS_VM else named.get("cs", 0) & 3


# `RAX=0000…`, `R8 =0000…`, `CPL=0`, and of `ES =0000 00000000 …` the selector.
_VALUE: Final = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) ?=([0-9a-f]{1,16})\b")
_SEGMENT_BASE: Final = re.compile(r"^([FG]S) ?=[0-9a-f]{4} ([0-9a-f]{8,16}) ", re.MULTILINE)
_TABLE: Final = re.compile(r"^([GI]DT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})\s*$", re.MULTILINE)
# EFER is the last of the system registers; FPU and vector registers follow, up to 5 KB of them.
_LAST: Final = re.compile(r"^EFER=[0-9a-f]{16}\s*$", re.MULTILINE)

_GENERAL: Final = ("AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP", "IP")
_EXTENDED: Final = tuple(f"R{n}" for n in range(8, 16))
_SELECTORS: Final = ("ES", "CS", "SS", "DS", "FS", "GS")
_SYSTEM: Final = ("CR0", "CR2", "CR3", "CR4", "EFER", "CPL", "SMM")


def _names(letter: str) -> dict[str, str]:
    """These are our names of what is printed where general registers begin with a letter."""
    names = {letter + name: "r" + name.lower() for name in _GENERAL}
    names |= {name: name.lower() for name in (*_SELECTORS, *_SYSTEM, *_EXTENDED)}
    return names | {letter + "FL": "rflags", "HLT": "halted"}


_NAMES_64: Final = _names("R")
_NAMES_32: Final = _names("E")
_HIDDEN_32: Final = dict.fromkeys((name.lower() for name in _EXTENDED), None)
"""What is not printed unless 64-bit code runs."""


def parse_registers(text: str) -> tuple[Registers, ...]:
    """This reads the answer to ``info registers -a``, in 64-bit, 32-bit and 16-bit layout.

    Returns:
        The vCPUs in the order QEMU printed them; at least one.

    Raises:
        QmpProtocolError: a register is missing, or the text is not about x86 vCPUs at all.
    """
    return tuple(_parse_vcpu(index, dump) for index, dump in vcpu_dumps(text))


def _parse_vcpu(index: int, dump: str) -> Registers:
    last = _LAST.search(dump)
    if last is None:
        raise malformed(f"CPU#{index}: no EFER; is this an x86-64 guest?")
    system = dump[: last.end()]
    values = {name: int(digits, 16) for name, digits in _VALUE.findall(system)}
    fields: dict[str, object] = {"index": index, "kernel_gs_base": None}
    fields |= _named(values)
    whole_bases = "RIP" in values or not values.get("EFER", 0) & _EFER_LONG_MODE_ACTIVE
    for name, base in _SEGMENT_BASE.findall(system):
        fields[f"{name.lower()}_base"] = int(base, 16) if whole_bases else None
    for name, base, limit in _TABLE.findall(system):
        fields[f"{name.lower()}_base"] = int(base, 16)
        fields[f"{name.lower()}_limit"] = int(limit, 16)
    try:
        # Not strict: QEMU prints truth values as 0 and 1.
        return msgspec.convert(fields, Registers, strict=False)
    except msgspec.ValidationError as error:
        raise malformed(f"CPU#{index}: {error}") from error


def _named(values: Mapping[str, int]) -> dict[str, int | None]:
    """These are the registers that were printed, under our names."""
    wide = "RIP" in values
    names = _NAMES_64 if wide else _NAMES_32
    found = {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
    return {**found} if wide else {**_HIDDEN_32, **found}
