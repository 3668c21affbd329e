"""Where a kernel changes its own running code, and which instructions it may put there.

References: Linux arch/x86/kernel/ftrace.c, jump_label.c, static_call.c, alternative.c (``text_poke_bp``: a
trap, then the rest, then the first byte), kprobes/core.c and opt.c; arch/arm64/kernel/ftrace.c
(``ftrace_rec_update_ops``, 6.3), jump_label.c, arch/arm64/include/asm/module.h (``struct plt_entry``);
include/linux/jump_label.h (``struct jump_entry``, of distances since 5.10 on both architectures),
static_call_types.h (``struct static_call_site``, ``struct static_call_key``), kernel/static_call_inline.c.
Alternatives, returns and calls by thunks are chosen at boot, before anybody looks, and stay.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.arch.branches import (
    FAR_JUMP_SIZE,
    Decode,
    Instruction,
    Kind,
    aarch64_far_jump,
    aarch64_instruction,
    x86_64_instruction,
)
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.hooks.extable import KnownCode
from qvmi.semantics.linux.hooks.ftrace_ops import FtraceOps
from qvmi.semantics.linux.hooks.ftrace_records import FtraceRecords
from qvmi.semantics.linux.hooks.kprobes import Kprobes
from qvmi.semantics.linux.modules.module_text import ModuleText
from qvmi.semantics.linux.structures.record import compile_reader, read_table
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["CODE_AHEAD", "PatchSites", "Verdict"]

CODE_AHEAD: Final = 8
"""Bytes that are shown of the code at a site; the longest instruction put there has six."""

_POINTER: Final = Struct("<Q")
_DISTANCE: Final = 4
"""Bytes of one that is kept instead of an address."""
_X86_64: Final = "x86_64"
_CALLERS: Final = ("ftrace_caller", "ftrace_regs_caller", "__fentry__")
_CALLED_BY_CALLERS: Final = ("ftrace_call", "ftrace_regs_call", "ftrace_graph_call")
"""Where those call whoever traces; arm64 has fewer of them."""
_RETURN_THUNKS: Final = (
    *("__x86_return_thunk", "retbleed_return_thunk", "srso_return_thunk"),
    *("srso_alias_return_thunk", "its_return_thunk", "call_depth_return_thunk"),
)
_NO_TRACERS: Final = ("ftrace_list_ops", "ftrace_nop_ops", "nop_ops", "global_ops")
"""Operations that a place on arm64 names when it is called by several, or by none."""
_AFTER_RETURN: Final = b"\xcc\xcc\xcc\xcc"
_TRAMPOLINE, _KEY = "__SCT__", "__SCK__"
_LOCKS: Final = {b"\xf0", b"\x3e"}
"""A lock prefix, and what stands for it while there is one CPU (``alternatives_smp_module_add``)."""
_NOTHING_X86_64: Final = b"\x0f\x1f\x44\x00\x00"
_NOTHING_AARCH64: Final = b"\x1f\x20\x03\xd5"
_ANYWHERE: Final = (0, 1 << 64)
_NOWHERE: Final = (0, 0)


_MAX_ENTRIES: Final = 1 << 20
"""Of all tables of jump labels and static calls together; a kernel has some 15,000, a module dozens."""


class _Table(NamedTuple):
    """This is a kind of table of sites, of which the kernel has one, and each module.

    Args:
        entry: the layout of one; it begins with the distances to the site, and to where that leads or to
            what says so, each from where it is kept.
        mask: what of the latter is an address.
        start: symbol of the kernel's own.
        stop: symbol behind it.
        at_member: of a ``struct module``, which says where its own is.
        count_member: which says how many entries that has.
    """

    entry: Struct
    mask: int
    start: str
    stop: str
    at_member: str
    count_member: str


_LABELS: Final = _Table(
    Struct("<iiq"),
    -1,
    "__start___jump_table",
    "__stop___jump_table",
    "jump_entries",
    "num_jump_entries",
)
_CALLS: Final = _Table(
    Struct("<ii"),
    ~3,
    "__start_static_call_sites",
    "__stop_static_call_sites",
    "static_call_sites",
    "num_static_call_sites",
)


class Verdict(NamedTuple):
    """This is what is thought of the code at a site.

    Args:
        site: what the kernel changes there.
        size: bytes that belong to it.
        problem: why they cannot be right; empty where they can.
        is_passing: whether a healthy kernel passes through that.
    """

    site: str
    size: int
    problem: str = ""
    is_passing: bool = False


class PatchSites:
    """This knows the sites of one kernel and its modules at one moment; it is made for one look.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        code: what code there is.
        architecture: of the kernel.
        modules: that are loaded.

    Attributes:
        gaps: what could not be read; changes there seem to be nobody's.
        nothing: the instruction that does nothing and is as long as a call.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        *,
        code: KnownCode,
        architecture: str,
        modules: Iterable[Module],
    ) -> None:
        self._space = space
        self._symbols = symbols
        self._code = code
        self._is_x86_64 = architecture == _X86_64
        self._decode: Decode = x86_64_instruction if self._is_x86_64 else aarch64_instruction
        self._branch = 5 if self._is_x86_64 else 4
        self._read_pointer = space.unpacker(_POINTER)
        self._modules = tuple(modules)
        self._text = ModuleText(space, symbols)
        records = FtraceRecords(space, symbols)
        self._places = records.places()
        self._direct = records.direct_calls()
        self._labels: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._functions: dict[int, int] = {}
        self._room = _MAX_ENTRIES
        self.gaps: list[Gap] = records.gaps
        self._read_tables()
        self._hubs = self._found(_CALLED_BY_CALLERS)
        every = {*self._places, *self._labels, *self._calls, *self._hubs}
        self._sites = array("Q", sorted(every))
        self.nothing = _NOTHING_X86_64 if self._is_x86_64 else _NOTHING_AARCH64
        probes = Kprobes(space, symbols).all()
        self.gaps += probes.gaps
        self._probes = {row.place for row in probes.rows.values()}

    def within(self, start: int, end: int) -> Iterator[int]:
        """This iterates the sites in a run of addresses."""
        first, last = bisect_left(self._sites, start), bisect_left(self._sites, end)
        return iter(self._sites[first:last])

    def literals(self, start: int, end: int) -> Iterator[int]:
        """This iterates where arm64 keeps, before a function, who traces it.

        Corresponds to ``ftrace_rec_update_ops``.
        """
        if not self._is_x86_64:
            for at in self._places:
                literal = (at - 12) & ~7
                if start <= literal < end:
                    yield literal

    def judge(self, at: int, code: bytes, before: bytes) -> Verdict:
        """This judges the code at a site of :meth:`within`.

        Args:
            at: the site.
            code: what is there, CODE_AHEAD bytes of it.
            before: what was there; a site keeps its size.
        """
        found = self._decode(code, at)
        was = self._decode(before, at)
        if found and was and found.size != was.size > 1 < found.size:
            return Verdict("patch site", found.size, f"{found.size} bytes where {was.size} belong")
        if at in self._labels:
            return self._label(self._labels[at], found)
        if at in self._calls:
            return self._call(self._calls[at], found, code)
        return self._hub(found) if at in self._hubs else self._place(at, found)

    def judge_literal(self, value: int) -> str:
        """This says why a pointer before a function cannot name who traces it; empty where it can."""
        return "" if value in self._tracers else "nobody who traces is at that address"

    def judge_change(self, at: int, old: bytes, new: bytes, symbol: str) -> Verdict | None:
        """This judges a change that is at none of those sites; None where nobody may make one.

        Args:
            at: the first byte that differs.
            old: the bytes from there on as they were.
            new: the same as they are.
            symbol: the name of what is there, with the distance from it.
        """
        for back in range(self._branch):
            if at - back in self._probes:
                return self._probe(at - back, at, new)
        if self._is_x86_64 and old[1:] == new[1:] and {old[:1], new[:1]} == _LOCKS:
            return Verdict("lock prefix", 1)
        name, _, distance = symbol.partition("+")
        if name.startswith(_TRAMPOLINE):
            return self._trampoline(name, at - int(distance or "0", 16))
        if name.startswith("bpf_dispatcher_") and self._is_x86_64:
            return self._dispatcher(at, new)
        return None

    def _place(self, at: int, found: Instruction | None) -> Verdict:
        site = "ftrace"
        if found is None:
            return Verdict(site, self._branch, "no instruction that ftrace puts there")
        if found.kind is Kind.NOTHING and found.size == self._branch:
            return Verdict(site, self._branch)
        if found.kind in {Kind.CALL, Kind.JUMP} and self._may_trace(at, found):
            return Verdict(site, self._branch)
        if found.kind is Kind.TRAP:
            return Verdict(site, self._branch, "a trap", is_passing=True)
        owner = self._code.owner(found.target) or "nobody's code"
        return Verdict(site, self._branch, f"a {found.kind} to {owner} at {found.target:#x}")

    def _hub(self, found: Instruction | None) -> Verdict:
        """This judges where all traced functions come by: the kernel's own code goes on from there."""
        site = "ftrace"
        if found is None:
            return Verdict(site, self._branch, "no instruction that ftrace puts there")
        if found.kind is Kind.TRAP:
            return Verdict(site, self._branch, "a trap", is_passing=True)
        if found.kind is Kind.NOTHING or self._code.owner(found.target):
            return Verdict(site, self._branch)
        return Verdict(site, self._branch, f"a {found.kind} to nobody's code at {found.target:#x}")

    def _may_trace(self, at: int, found: Instruction) -> bool:
        target, owner = found.target, self._code.owner(found.target)
        if owner.startswith("bpf ") or (owner and self._direct.get(at, 0) & ~1 == target):
            return True
        if found.kind is not Kind.CALL:
            return False
        if owner == "ftrace trampoline" or target in self._callers:
            return True
        return not self._is_x86_64 and owner == self._code.owner(at) and self._is_plt(target)

    def _is_plt(self, at: int) -> bool:
        """This tells whether a module of arm64's goes from there to a caller that is far."""
        try:
            code = self._space.read(Va(at), FAR_JUMP_SIZE)
        except MemoryFault:
            return False
        return aarch64_far_jump(code, at) in self._callers

    def _label(self, target: int, found: Instruction | None) -> Verdict:
        site = "jump label"
        if found is None:
            return Verdict(site, self._branch, "no instruction of a jump label")
        if found.kind is Kind.NOTHING or (found.kind is Kind.JUMP and found.target == target):
            return Verdict(site, found.size)
        if found.kind is Kind.TRAP:
            return Verdict(site, self._branch, "a trap", is_passing=True)
        why = f"a {found.kind} to {found.target:#x} where a jump to {target:#x} may be"
        return Verdict(site, found.size, why)

    def _call(self, key: int, found: Instruction | None, code: bytes) -> Verdict:
        site, function = "static call", self._function(key)
        if found is None:
            return Verdict(site, self._branch, "no instruction of a static call")
        if found.kind in {Kind.NOTHING, Kind.ZERO, Kind.WARNING} and found.size == self._branch:
            return Verdict(site, found.size)
        if found.kind is Kind.RETURN and code[1:5] == _AFTER_RETURN:
            return Verdict(site, self._branch)
        if found.kind is Kind.TRAP:
            return Verdict(site, self._branch, "a trap", is_passing=True)
        return self._called(site, found, function)

    def _called(self, site: str, found: Instruction, function: int) -> Verdict:
        target, owner = found.target, self._code.owner(found.target)
        if owner and (target == function or target in self._thunks):
            return Verdict(site, found.size)
        why = f"a {found.kind} to {target:#x} where {function:#x} is to be called"
        # The key is written before the code.
        return Verdict(site, found.size, why, is_passing=bool(owner))

    def _trampoline(self, name: str, start: int) -> Verdict:
        """This judges the code through which a static call goes that is in no table."""
        site = "static call"
        key = self._symbols.find(_KEY + name.removeprefix(_TRAMPOLINE))
        try:
            code = self._space.read(Va(start), CODE_AHEAD)
            function = 0 if key is None else self._function(key)
        except MemoryFault:
            return Verdict(site, self._branch, "it cannot be read", is_passing=True)
        found = self._decode(code, start)
        if found is not None and found.kind is Kind.JUMP:
            return self._called(site, found, function)
        is_return = code[:1] == b"\xc3" or code[:3] == b"\x31\xc0\xc3"
        trap = found is not None and found.kind is Kind.TRAP
        why = "" if is_return else "no instruction of a static call"
        return Verdict(site, CODE_AHEAD, why, is_passing=trap)

    def _dispatcher(self, at: int, new: bytes) -> Verdict | None:
        """This judges where eBPF's dispatcher of a kernel before 6.2 is called or not."""
        found = self._decode(new.ljust(CODE_AHEAD, b"\0"), at)
        if found is None:
            return None
        may = found.kind is Kind.NOTHING or self._code.owner(found.target).startswith("bpf ")
        return Verdict("bpf dispatcher", self._branch) if may else None

    def _probe(self, start: int, at: int, new: bytes) -> Verdict:
        code = new if start == at else self._space.read(Va(start), CODE_AHEAD)
        found = self._decode(code.ljust(CODE_AHEAD, b"\0"), start)
        size = start + self._branch - at
        if found is not None and found.kind is Kind.TRAP:
            return Verdict("kprobe", size)
        to_slot = found is not None and self._code.owner(found.target) == "kprobe slots"
        why = "" if to_slot else "neither a trap nor a jump to a kprobe's code"
        return Verdict("kprobe", size, why)

    def _function(self, key: int) -> int:
        """This is what a static call is to call."""
        if key not in self._functions:
            offset = field_offset(self._symbols, "static_call_key", "func")
            try:
                self._functions[key] = self._read_pointer(key + offset)[0]
            except MemoryFault:
                self._functions[key] = 0
        return self._functions[key]

    @cached_property
    def _callers(self) -> frozenset[int]:
        return self._found(_CALLERS)

    @cached_property
    def _thunks(self) -> frozenset[int]:
        return self._found(_RETURN_THUNKS)

    @cached_property
    def _tracers(self) -> frozenset[int]:
        registered = FtraceOps(self._space, self._symbols).all()
        return self._found(_NO_TRACERS) | frozenset(registered.rows)

    def _found(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset(at for at in map(self._symbols.find, names) if at is not None)

    def _read_tables(self) -> None:
        """This reads the kernel's own tables of jump labels and static calls, and the modules'."""
        find = self._symbols.find
        for table, into in ((_LABELS, self._labels), (_CALLS, self._calls)):
            start, stop = find(table.start), find(table.stop)
            if start is not None and stop is not None:
                self._add(table, into, start, (stop - start) // table.entry.size, _ANYWHERE)
            try:
                read = compile_reader(
                    self._space,
                    (field_offset(self._symbols, "module", table.at_member), "Q"),
                    (field_offset(self._symbols, "module", table.count_member), "I"),
                )
            except SymbolsError:
                continue
            for module in self._modules:
                try:
                    at, count = read(module.struct_address)
                    text = next(self._text.of(module), _NOWHERE)
                except MemoryFault:
                    continue  # it was unloaded in the meantime
                if at:
                    self._add(table, into, at, count, text)

    def _add(
        self, table: _Table, into: dict[int, int], start: int, count: int, text: tuple[int, int]
    ) -> None:
        """This adds what a table has of its owner's text.

        A module's table still has what was in its text for initialisation, which is freed: other modules'
        code may lie there now.
        """
        if not 0 <= count <= self._room:
            why = f"{count} entries, where there is room for {self._room}"
            self.gaps.append(Gap("patch sites", Va(start), why))
            return
        self._room -= count
        try:
            rows = read_table(self._space, Va(start), count, table.entry)
        except MemoryFault as fault:
            self.gaps.append(Gap("patch sites", Va(start), str(fault)))
        else:
            # A key's lowest bits are flags (``STATIC_CALL_SITE_FLAGS``).
            into.update(
                (at + site, (at + _DISTANCE + its) & table.mask)
                for at, (site, its, *_) in rows
                if text[0] <= at + site < text[1]
            )
