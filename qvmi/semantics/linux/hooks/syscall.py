"""The tables of functions that handle system calls, and what should be in them.

References: Linux arch/x86/entry/syscall_64.c, syscall_32.c, arch/arm64/kernel/sys.c, sys32.c
(``sys_call_table``, ``ia32_sys_call_table``, ``compat_sys_call_table``), and include/asm/syscall_wrapper.h of
both. Since 6.9, and in older series that took 1e3ad78334a6 over,
x86-64 goes by switches in ``x64_sys_call`` and ``ia32_sys_call``: what the table says is then only asked
by tracing, and the call goes where the text of those leads.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.hooks import syscall_names
from qvmi.semantics.linux.hooks.extable import KERNEL, KnownCode
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.code import CodePointer
from qvmi.symbols.layout import Symbols

__all__ = ["SystemCallTables", "symbol_text"]

_POINTER: Final = Struct("<Q")
_MAX_CALLS: Final = 1024
"""Entries of a table; there are some 470 calls."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """This says what should be in a table.

    Args:
        table: its name.
        prefix: of the names of handlers.
        calls: the handlers by number, without prefix; empty where any handler will do.
        handler: what a handler's name looks like.
    """

    table: str
    prefix: str
    calls: Sequence[str]
    handler: re.Pattern[str]


_ANY_X86: Final = re.compile(r"(__(x64|ia32|x32|do)_)?(compat_)?sys_\w+")
_ANY_ARM64: Final = re.compile(r"(__arm64_)?(compat_)?sys_\w+")
_SHAPES: Final = (
    _Shape("sys_call_table", "__x64_sys_", syscall_names.X86_64, _ANY_X86),
    _Shape("ia32_sys_call_table", "__x64_sys_", (), _ANY_X86),
    _Shape("x32_sys_call_table", "__x64_sys_", (), _ANY_X86),
    _Shape("sys_call_table", "__arm64_sys_", syscall_names.AARCH64, _ANY_ARM64),
    _Shape("compat_sys_call_table", "__arm64_sys_", (), _ANY_ARM64),
)
_NO_CALL: Final = "ni_syscall"
_TABLE: Final = "sys_call_table"
"""The one that every kernel has; the others are for programs of another kind."""


class SystemCallTables:
    """This reads the tables of one kernel, and remembers what was right in them.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self._sizes: dict[str, int] = {}
        self._right: dict[str, tuple[bytes, dict[int, CodePointer]]] = {}

    def entries(self, code: KnownCode) -> ListWalk[CodePointer]:
        """This lists all entries of all tables; one that cannot be right says why.

        Args:
            code: what code there is now.

        Raises:
            SymbolsError: the kernel's names cannot be read.
            WalkFailed: the list of modules cannot be walked at all.
        """
        result: ListWalk[CodePointer] = ListWalk()
        shapes = [one for one in _SHAPES if self._symbols.find(one.prefix + _NO_CALL) is not None]
        for shape in shapes:
            table = self._symbols.find(shape.table)
            if table is None:
                continue
            try:
                data = self._space.read(table, self._size(shape, table) * _POINTER.size)
            except MemoryFault as fault:
                result.gaps.append(Gap(shape.table, table, str(fault)))
                continue
            result.rows |= self._rows(shape, table, data, code)
        if not shapes:
            result.gaps.append(Gap(_TABLE, None, "no handler has a name that is known"))
        elif self._symbols.find(_TABLE) is None:
            result.gaps.append(Gap(_TABLE, None, "the kernel does not tell where it is"))
        code.add_to(result)
        return result

    def _rows(
        self, shape: _Shape, table: Va, data: bytes, code: KnownCode
    ) -> dict[int, CodePointer]:
        """These are a table's entries: those of the last look where they were right and are the same."""
        known = self._right.get(shape.table)
        if known is not None and known[0] == data:
            return known[1]
        rows: dict[int, CodePointer] = {
            row.place: row for row in self._read(shape, table, data, code)
        }
        if not any(row.problem for row in rows.values()):
            self._right[shape.table] = (data, dict(rows))
        return dict(rows)

    def _read(
        self, shape: _Shape, table: Va, data: bytes, code: KnownCode
    ) -> Iterator[CodePointer]:
        for number, (target,) in enumerate(_POINTER.iter_unpack(data)):
            call = shape.calls[number] if number < len(shape.calls) else ""
            place = Va(table + number * _POINTER.size)
            entry = f"{number} {call}".rstrip(f" {syscall_names.UNUSED}")
            owner = code.owner(target)
            symbol = symbol_text(self._symbols, target) if owner == KERNEL else ""
            right = owner == KERNEL and self._fits(shape, call, target, symbol)
            row = CodePointer(shape.table, entry, place, Va(target), owner, symbol)
            yield row if right else self._wrong(row, shape, call)

    def _fits(self, shape: _Shape, call: str, target: int, symbol: str) -> bool:
        if not call:
            return shape.handler.fullmatch(symbol) is not None
        if symbol == shape.prefix + call:
            return True
        return target == self._symbols.find(self._handler(shape, call))

    def _handler(self, shape: _Shape, call: str) -> str:
        """This names what handles a call; a kernel that was made without it has none in its place."""
        own = shape.prefix + call
        is_there = call != syscall_names.UNUSED and self._symbols.find(own) is not None
        return own if is_there else shape.prefix + _NO_CALL

    def _wrong(self, row: CodePointer, shape: _Shape, call: str) -> CodePointer:
        """This is a row with what is wrong about it; of a table with known calls also what is right."""
        handler = self._handler(shape, call) if call else ""
        problem = f"it is not {handler}" if handler else "no handler begins there"
        if row.owner != KERNEL:
            problem = "it leads out of the kernel's text"
        expected = self._symbols.find(handler) if handler else None
        if expected is None:
            return msgspec.structs.replace(row, problem=problem)
        found, right = _POINTER.pack(row.target), _POINTER.pack(expected)
        return msgspec.structs.replace(row, problem=problem, found=found, expected=right)

    def _size(self, shape: _Shape, table: Va) -> int:
        """This is the number of a table's entries: up to the next symbol, but for room at its end."""
        if shape.table not in self._sizes:
            low, high = 0, _MAX_CALLS
            while low + 1 < high:
                middle = (low + high) // 2
                found = self._symbols.nearest(Va(table + middle * _POINTER.size))
                is_within = found is not None and found.address == table
                low, high = (middle, high) if is_within else (low, middle)
            data = self._space.read(table, (low + 1) * _POINTER.size)
            self._sizes[shape.table] = max(1, -(-len(data.rstrip(b"\0")) // _POINTER.size))
        return self._sizes[shape.table]


def symbol_text(symbols: Symbols, va: int) -> str:
    """This names what is at an address of the kernel, with the distance from its beginning."""
    found = symbols.nearest(Va(va))
    if found is None:
        return ""
    distance = va - found.address
    return f"{found.name}+{distance:#x}" if distance else found.name
