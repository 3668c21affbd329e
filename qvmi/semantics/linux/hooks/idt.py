"""The interrupt descriptor table of x86-64, and what should be in it.

References: Linux arch/x86/kernel/idt.c (``idt_table``, ``def_idts``, ``ist_idts``),
arch/x86/include/asm/idtentry.h (``irq_entries_start``, ``spurious_entries_start``),
arch/x86/include/asm/segment.h (``EARLY_IDT_HANDLER_SIZE``), arch/x86/include/asm/page_64_types.h
(``IST_INDEX_DF``, the first of them); Intel SDM volume 3A, 6.14.1 (gates of 64-bit mode).
"""

import re
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.arch import x86_64
from qvmi.arch.registers import Registers
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.hooks.extable import KERNEL, KnownCode
from qvmi.semantics.linux.hooks.syscall import symbol_text
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.code import CodePointer
from qvmi.symbols.layout import Symbols

__all__ = ["GATE_SIZE", "InterruptTable", "gate_problem", "gate_target"]

_TABLE: Final = "idt_table"
_GATE: Final = Struct("<HHHHII")
GATE_SIZE: Final = _GATE.size
"""Bytes of a gate."""
_GATES: Final = 256
_KERNEL_CS: Final = 0x10
_INTERRUPT_GATE: Final = 14
_USER: Final = 3
_CALLED_BY_PROGRAMS: Final = (3, 4, 0x80)
"""Vectors that programs may raise: INT3, INTO, and system calls of 32-bit programs."""
_FIRST_EXTERNAL: Final = 32
_SET_BEFORE: Final = 16
"""More gates of interrupts than a kernel has before it sets all of them: for programs, for hypervisors."""
_STACKS: Final = {8: 1, 2: 2, 1: 3, 18: 4, 29: 5}
"""Stacks of their own, by exception: the same since exceptions are called ``asm_exc_…`` (Linux 5.8)."""
_EXCEPTIONS: Final = (
    *("divide_error", "debug", "nmi", "int3", "overflow", "bounds", "invalid_op"),
    *("device_not_available", "double_fault", "coproc_segment_overrun", "invalid_tss"),
    *("segment_not_present", "stack_segment", "general_protection", "page_fault"),
    *("spurious_interrupt_bug", "coprocessor_error", "alignment_check", "machine_check"),
    *("simd_coprocessor_error", "virtualization_exception", "control_protection"),
    *("", "", "", "", "", "", "", "vmm_communication", "", ""),
)
_ENTRIES: Final = {"irq_entries_start": (8, 16), "spurious_entries_start": (8, 16)}
"""Rows of code, one for each vector, and how long one can be: 16 with IBT."""
_EARLY: Final = "early_idt_handler_array"
_EARLY_SIZES: Final = (9, 13)
"""What was there before the first gates were set stays in gates that nobody needs; 13 with IBT."""
_HANDLER: Final = "asm_exc_page_fault"
"""A handler that every kernel for x86-64 has."""
_ABSENT: Final = "it is not present, and was: nothing is handled there"
_SYSTEM: Final = re.compile(r"asm_sysvec_\w+|asm_exc_\w+|asm_int80_emulation|entry_INT80_compat")


class InterruptTable:
    """This reads the table of one kernel, and remembers what was right in it.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self._right: dict[int, tuple[bytes, dict[int, CodePointer]]] = {}

    def gates(self, vcpus: Sequence[Registers], code: KnownCode) -> ListWalk[CodePointer]:
        """This lists the gates of the kernel's table, and of those that vCPUs have instead.

        Args:
            vcpus: registers as they were when the guest was looked at.
            code: what code there is now.

        Returns:
            Nothing on an architecture that has no such table.

        Raises:
            SymbolsError: the kernel's names cannot be read.
        """
        result: ListWalk[CodePointer] = ListWalk()
        own = self._symbols.find(_TABLE)
        if own is None:
            if self._symbols.find(_HANDLER) is not None:
                result.gaps.append(Gap(_TABLE, None, "the kernel does not tell where it is"))
            return result
        tables = {_TABLE: own}
        for vcpu in vcpus:
            base = vcpu.idt_base if isinstance(vcpu, x86_64.Registers) else None
            if base is None or not self._is_elsewhere(base, own):
                continue
            name = f"IDTR of vCPU {vcpu.index}"
            why = f"it is not {_TABLE}"
            owner, symbol = code.owner(base), symbol_text(self._symbols, base)
            result.rows[-1 - vcpu.index] = CodePointer(name, "", base, base, owner, symbol, why)
            tables[name] = base
        for name, base in tables.items():
            try:
                data = self._space.read(base, _GATES * _GATE.size)
            except MemoryFault as fault:
                result.gaps.append(Gap(name, base, str(fault)))
            else:
                result.rows |= self._rows(name, base, data, code)
        code.add_to(result)
        return result

    def _is_elsewhere(self, base: Va, own: Va) -> bool:
        """This tells whether a table is in another place of memory: vCPUs have it by another address."""
        try:
            return self._space.translate(base) != self._space.translate(own)
        except MemoryFault:
            return True

    def _rows(self, name: str, base: Va, data: bytes, code: KnownCode) -> dict[int, CodePointer]:
        known = self._right.get(base)
        if known is not None and known[0] == data:
            return known[1]
        rows: dict[int, CodePointer] = {
            row.place: row for row in self._read(name, base, data, code)
        }
        if name == _TABLE and not any(row.problem for row in rows.values()):
            self._right[base] = (data, dict(rows))
        return rows

    def _read(self, name: str, base: Va, data: bytes, code: KnownCode) -> Iterator[CodePointer]:
        exceptions, interrupts = _are_set(data)
        for vector, gate in enumerate(_GATE.iter_unpack(data)):
            low, selector, bits, middle, high, _ = gate
            present = bits >> 15
            if not present and not (exceptions if vector < _FIRST_EXTERNAL else interrupts):
                continue  # not set yet
            target = Va(low | middle << 16 | high << 32)
            owner, symbol = code.owner(target), symbol_text(self._symbols, target)
            problem = _ABSENT
            if present:
                problem = self._problem(vector, target, symbol, owner)
                problem = problem or _wrong_gate(vector, selector, bits)
            entry = f"{vector} {_exception(vector)}".rstrip()
            place = Va(base + vector * _GATE.size)
            row = CodePointer(name, entry, place, target, owner, symbol, problem)
            yield self._repairable(row, vector, data) if problem and name == _TABLE else row

    def _repairable(self, row: CodePointer, vector: int, data: bytes) -> CodePointer:
        """This is a wrong gate, of an exception also with the right one, which follows from its vector.

        Early in its boot the kernel has no stacks for exceptions yet, nor gates for interrupts.
        """
        name = _exception(vector)
        handler = self._symbols.find(f"asm_exc_{name}") if name else None
        _, interrupts = _are_set(data)
        if handler is None or not interrupts:
            return row
        found = data[vector * _GATE.size : (vector + 1) * _GATE.size]
        expected = _exception_gate(vector, handler)
        return msgspec.structs.replace(row, found=found, expected=expected)

    def _problem(self, vector: int, target: int, symbol: str, owner: str) -> str:
        early = self._symbols.find(_EARLY)
        if early is not None and target - early in {vector * size for size in _EARLY_SIZES}:
            return ""
        if owner != KERNEL:
            return "it leads out of the kernel's text"
        expected = _exception(vector)
        if vector < _FIRST_EXTERNAL:
            right = symbol == f"asm_exc_{expected}" if expected else symbol.startswith("asm_exc_")
            return "" if right else f"it is not asm_exc_{expected}"
        if _SYSTEM.fullmatch(symbol):
            return ""
        start, _, distance = symbol.partition("+")
        away = int(distance or "0", 16)
        if any(away % size == 0 and away // size < _GATES for size in _ENTRIES.get(start, ())):
            return ""
        return "no interrupt is handled there"


def _exception(vector: int) -> str:
    """This names an exception of the processor's; empty for a vector that is none."""
    return _EXCEPTIONS[vector] if vector < len(_EXCEPTIONS) else ""


def _are_set(table: bytes) -> tuple[bool, bool]:
    """This tells whether the kernel has set the gates of exceptions, and those of interrupts.

    It sets all 32 of the former in one go before it uses the table, all others in another much later, and
    takes none of them away again (``idt_setup_early_handler``, ``idt_setup_apic_and_irq_gates``).
    """
    present = [bool(bits >> 15) for _, _, bits, *_ in _GATE.iter_unpack(table)]
    return any(present[:_FIRST_EXTERNAL]), sum(present[_FIRST_EXTERNAL:]) > _SET_BEFORE


def _exception_gate(vector: int, handler: Va) -> bytes:
    """This is the gate of an exception in a kernel that has started."""
    level = _USER if vector in _CALLED_BY_PROGRAMS else 0
    bits = 1 << 15 | level << 13 | _INTERRUPT_GATE << 8 | _STACKS.get(vector, 0)
    low, middle, high = handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32
    return _GATE.pack(low, _KERNEL_CS, bits, middle, high, 0)


def _wrong_gate(vector: int, selector: int, bits: int) -> str:
    """This says why a gate cannot be the kernel's, wherever it leads; empty where it can."""
    if selector != _KERNEL_CS:
        return f"its code segment is {selector:#x}"
    if bits >> 8 & 31 != _INTERRUPT_GATE:
        return f"it is a gate of type {bits >> 8 & 31}"
    if bits >> 13 & 3 == _USER and vector not in _CALLED_BY_PROGRAMS:
        return "programs may raise it"
    return ""


def gate_target(gate: bytes) -> Va:
    """This is where a gate leads."""
    low, _, _, middle, high, _ = _GATE.unpack(gate)
    return Va(low | middle << 16 | high << 32)


def gate_problem(vector: int, gate: bytes) -> str:
    """This says why a gate cannot be the kernel's, wherever it leads; empty where it can."""
    _, selector, bits, _, _, reserved = _GATE.unpack(gate)
    if not bits >> 15:
        return "it is not present"
    if reserved:
        return f"what is reserved in it is {reserved:#x}"
    return _wrong_gate(vector, selector, bits)
