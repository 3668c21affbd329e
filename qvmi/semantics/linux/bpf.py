"""eBPF programs that are loaded: the kernel's IDR of them, and the maps that they use.

References: Linux kernel/bpf/syscall.c (``prog_idr``, ``bpf_prog_get_info_by_fd``), include/linux/bpf.h
(``struct bpf_prog``, ``struct bpf_prog_aux``, ``struct bpf_map``).
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.bpf_use import LEVELS, LIMIT, BpfUsers, TypeNames, Use
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.idr import Idr
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.bpf import BpfMap, BpfProgram
from qvmi.semantics.rows.files import OpenFile
from qvmi.semantics.rows.sockets import Socket
from qvmi.symbols.layout import Symbols, address, field, field_offset

__all__ = ["BpfPrograms"]

_STRUCTURE: Final = "prog_idr"
_RETRIES: Final = 3
_MAX_GAPS: Final = 1000
_STEPS: Final = 1 << 18
"""Programs, maps and functions for one question; more than a few thousand are a lie, and cost seconds."""
_MAX_MAPS: Final = 1024
"""Sixteen times ``MAX_USED_MAPS``."""
_MAX_FUNCTIONS: Final = 4096
"""Sixteen times ``BPF_MAX_SUBPROGS``."""
_MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``."""
_NANOSECONDS: Final = 1e9
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")


class _Program(NamedTuple):
    """These are the members of a ``struct bpf_prog``; ``flags`` is the byte that ``jited`` is in."""

    flags: int
    type: int
    len: int
    jited_len: int
    tag: bytes
    aux: int
    bpf_func: int


class _Aux(NamedTuple):
    """These are the members of a ``struct bpf_prog_aux``."""

    id: int
    used_map_cnt: int
    func_cnt: int
    attach_func_name: int
    func: int
    used_maps: int
    prog: int
    user: int
    load_time: int
    name: bytes


_PROGRAM_FORMS: Final = ("I", "I", "I", "8s", "Q", "Q")
"""Of all but the first."""
_AUX_FORMS: Final = ("I", "I", "I", "Q", "Q", "Q", "Q", "Q", "Q", "16s")


class BpfPrograms:
    """This lists the loaded programs.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        type_names: names the kinds of programs, maps and links.

    Raises:
        SymbolsError: the kernel has no eBPF, or the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, type_names: TypeNames) -> None:
        self._space = space
        self._type_names = type_names
        self._users = BpfUsers(space, symbols, type_names=type_names)
        self._table = Idr(
            space,
            symbols,
            structure=_STRUCTURE,
            at=address(symbols, _STRUCTURE),
            limit=LIMIT,
            levels=LEVELS,
        )
        jited = field(symbols, "bpf_prog", "jited")
        self._jited_bit = jited.bit_offset
        members = _members(symbols, "bpf_prog", _Program._fields[1:], _PROGRAM_FORMS)
        self._read_program = compile_reader(space, (jited.offset, "B"), *members)
        members = _members(symbols, "bpf_prog_aux", _Aux._fields, _AUX_FORMS)
        self._read_aux = compile_reader(space, *members)
        self._read_map = compile_reader(
            space,
            (field_offset(symbols, "bpf_map", "id"), "I"),
            (field_offset(symbols, "bpf_map", "map_type"), "I"),
            (field_offset(symbols, "bpf_map", "name"), "16s"),
        )
        self._uid = field_offset(symbols, "user_struct", "uid")
        self._function_size = field_offset(symbols, "bpf_prog", "jited_len")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)

    def programs(
        self, files: Iterable[OpenFile], sockets: Iterable[Socket]
    ) -> ListWalk[BpfProgram]:
        """This lists the programs by rising id.

        Args:
            files: that processes have open, some of which hold programs.
            sockets: that there are, some of which have a filter.

        Raises:
            WalkFailed: not even the root of the table can be read.
        """
        result: ListWalk[BpfProgram] = ListWalk()
        uses = self._users.of_all(files, sockets, result)
        effort = Effort(_STEPS)
        try:
            for number, program in self._table.entries(result):
                self._add(number, program, uses.get(program, Use()), result, effort)
                if len(result.gaps) > _MAX_GAPS:
                    result.gaps.append(Gap(_STRUCTURE, None, "given up: so much of it is wrong"))
                    break
        except Spent as spent:
            result.gaps.append(Gap(_STRUCTURE, None, str(spent)))
        return result

    def _add(
        self, number: int, program: int, use: Use, result: ListWalk[BpfProgram], effort: Effort
    ) -> None:
        """This adds one program, if it is still loaded when it has been read."""
        why = ""
        for _ in range(_RETRIES):
            try:
                result.rows[program] = self._row(number, program, use, effort)
            except (MemoryFault, Implausible) as error:
                why = str(error)
            else:
                return
            result.retries += 1
            if not self._table.has(number, program):
                return
        result.gaps.append(Gap(_STRUCTURE, Va(program), f"program {number}: {why}"))

    def _row(self, number: int, program: int, use: Use, effort: Effort) -> BpfProgram:
        its = _Program._make(self._read_program(program))
        aux = _Aux._make(self._read_aux(its.aux))
        if aux.id != number or aux.prog != program:
            raise Implausible(f"the program at {program:#x} says that it is {aux.id}")
        if aux.used_map_cnt > _MAX_MAPS or aux.func_cnt > _MAX_FUNCTIONS:
            raise Implausible(f"{aux.used_map_cnt} maps and {aux.func_cnt} functions")
        effort.spend(1 + aux.used_map_cnt + aux.func_cnt)
        jited = bool(its.flags >> self._jited_bit & 1)
        return BpfProgram(
            number,
            self._type_names("bpf_prog_type", its.type),
            _name(aux.name),
            its.tag.hex(),
            aux.load_time / _NANOSECONDS,
            self._read_number(aux.user + self._uid)[0],
            jited,
            Va(its.bpf_func) if jited else None,
            self._size(its, aux) if jited else 0,
            its.len,
            tuple(self._maps(aux)),
            self._target(aux.attach_func_name),
            tuple(use.attached),
            tuple(sorted(use.pids)),
            Va(program),
        )

    def _size(self, its: _Program, aux: _Aux) -> int:
        """This is the size of a program's machine code: of a single function, or of all."""
        if not aux.func_cnt:
            return its.jited_len
        functions = self._pointers(aux.func, aux.func_cnt)
        return sum(self._read_number(one + self._function_size)[0] for one in functions)

    def _maps(self, aux: _Aux) -> Iterable[BpfMap]:
        for at in self._pointers(aux.used_maps, aux.used_map_cnt):
            number, kind, name = self._read_map(at)
            yield BpfMap(number, self._type_names("bpf_map_type", kind), _name(name), Va(at))

    def _pointers(self, at: int, count: int) -> Iterable[int]:
        data = self._space.read(Va(at), count * _POINTER.size) if count else b""
        return (pointer for (pointer,) in _POINTER.iter_unpack(data))

    def _target(self, name: int) -> str:
        return text_of(self._space.read_string(Va(name), _MAX_NAME)) if name else ""


def _members(
    symbols: Symbols, type_name: str, names: Iterable[str], forms: Iterable[str]
) -> Iterator[tuple[int, str]]:
    for name, form in zip(names, forms, strict=True):
        yield field_offset(symbols, type_name, name), form


def _name(data: bytes) -> str:
    return text_of(data.partition(b"\0")[0])
