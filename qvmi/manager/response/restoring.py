"""Which bytes of the kernel's tables evidence says were changed, and whether they may be written back.

Two observations at one address disagree: one in which the thing that was found is present holds the bytes
that lie there, another in which it is absent those that should. A codepack may lie in both. So they are
written only where a table of system calls or interrupts is, and only what leads into the kernel's own code,
by a gate that can be the kernel's; where the kernel's own symbols say what should lie there, only that.

References: Linux kernel/kallsyms.c (``_stext``, ``_etext``); what a gate is is in
:mod:`qvmi.semantics.linux.hooks.idt`.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding
from qvmi.semantics.guest_os import CodePointer
from qvmi.semantics.linux.hooks.idt import GATE_SIZE, gate_problem, gate_target

__all__ = ["Repair", "disagreement", "problem_of", "repairs"]

_ENTRY: Final = struct.Struct("<Q")
_TABLE_BYTES: Final = 4096
"""Of a table that is looked into: 256 gates, or 512 system calls of 8 bytes; kernels have fewer."""

_GATES: Final = "idt_table"
_TABLES: Final = {
    "sys_call_table": _ENTRY.size,
    "x32_sys_call_table": _ENTRY.size,
    "ia32_sys_call_table": _ENTRY.size,
    "compat_sys_call_table": _ENTRY.size,
    _GATES: GATE_SIZE,
}
"""Tables of what the kernel calls, with the size of an entry in bytes."""

Find = Callable[[str], Va | None]
"""Gives the address of a symbol of the kernel; None where it has none."""


@dataclass(frozen=True, slots=True)
class Repair:
    """This is an entry of a table to be written back.

    Args:
        address: of the entry.
        there: what lies there, as the evidence has it.
        wanted: what should.
    """

    address: Va
    there: bytes
    wanted: bytes


def repairs(finding: Finding) -> tuple[Repair, ...]:
    """These are the entries that a finding's evidence tells how to write back."""
    should = {
        (one.address, len(one.data)): one.data
        for one in finding.evidence
        if not one.present and one.data and one.address is not None
    }
    return tuple(
        Repair(one.address, bytes.fromhex(one.data), bytes.fromhex(wanted))
        for one in finding.evidence
        if one.present and one.address is not None
        for wanted in [should.get((one.address, len(one.data)), one.data)]
        if wanted != one.data
    )


def problem_of(repair: Repair, find: Find) -> str:
    """This is why an entry is not to be written back; empty where it is."""
    for name, size in _TABLES.items():
        start = find(name)
        if start is None or not start <= repair.address < start + _TABLE_BYTES:
            continue
        offset = repair.address - start
        if offset % size or len(repair.wanted) != size:
            return f"{repair.address:#x} is within {name}, but no whole entry of it"
        gates = name == _GATES
        if gates and (problem := gate_problem(offset // size, repair.wanted)):
            return f"what is to be written is no gate of the kernel's: {problem}"
        target = gate_target(repair.wanted) if gates else _ENTRY.unpack(repair.wanted)[0]
        begin, end = find("_stext"), find("_etext")
        if begin is None or end is None or not begin <= target < end:
            return f"what is to be written leads to {target:#x}, which is not the kernel's own code"
        return ""
    return f"{repair.address:#x} is in no table of system calls or interrupts"


def disagreement(repair: Repair, entries: Iterable[CodePointer]) -> str:
    """This is what a look of one's own has against writing an entry back; empty where it has nothing.

    Args:
        repair: the entry.
        entries: of the kernel's tables, as they are now. What should be in one nobody knows of some.
    """
    row = next((one for one in entries if one.place == repair.address), None)
    if row is None:
        return f"no entry of the kernel's tables is seen at {repair.address:#x}"
    where = f"{row.table}[{row.entry}]"
    if not row.problem:
        return f"{where} is right as it is: it leads to {row.symbol}"
    if row.expected and row.expected != repair.wanted:
        return f"{where} should hold {row.expected.hex()}, and not {repair.wanted.hex()}"
    return ""
