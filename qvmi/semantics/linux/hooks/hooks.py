"""Everything that others have hooked into the kernel, and whose code is called there.

References: Linux kernel/trace/ftrace.c, kernel/kprobes.c, kernel/tracepoint.c, net/netfilter/core.c,
security/security.c, kernel/notifier.c, kernel/bpf/syscall.c (``prog_idr``).
"""

from collections.abc import Callable
from functools import cached_property, partial
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hooks.extable import KERNEL, KnownCode
from qvmi.semantics.linux.hooks.ftrace_ops import FtraceOps
from qvmi.semantics.linux.hooks.hook_places import HookPlace, HookPlaces
from qvmi.semantics.linux.hooks.kprobes import Kprobes
from qvmi.semantics.linux.hooks.netfilter import netfilter_hooks, protocol_hooks
from qvmi.semantics.linux.hooks.notifier import notifier_hooks
from qvmi.semantics.linux.hooks.rodata import CONSTANTS, ConstantPointers
from qvmi.semantics.linux.hooks.security import security_hooks
from qvmi.semantics.linux.hooks.syscall import symbol_text
from qvmi.semantics.linux.hooks.tracepoint import Tracepoints
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.structures.idr import Idr
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.code import CodePointer
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["KernelHooks"]

_POINTER: Final = Struct("<Q")
_MAX_PROGRAMS: Final = 1 << 17
_IDR_LEVELS: Final = 6
_MAX_NAMES: Final = 1 << 17
"""Names that are remembered; a guest may have each look find others."""


class KernelHooks:
    """This lists the hooks of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists the modules.
        image: of the kernel.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, modules: Modules, *, image: KernelImage
    ) -> None:
        self._space = space
        self._symbols = symbols
        self._modules = modules
        self._constants = ConstantPointers(space, symbols, image)
        self._names: dict[int, str] = {}

    def all(self, code: KnownCode) -> ListWalk[CodePointer]:
        """This lists every function that is hooked in; one that is nobody's says so.

        Args:
            code: what code there is now.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        places = HookPlaces()
        for table, source in self._sources:
            try:
                source(places)
            except SymbolsError as error:
                at = self._symbols.find(table)
                if at is not None:  # else this kernel has no such hooks
                    places.gap(table, at, str(error))
            except WalkFailed as error:
                places.gap(error.structure, None, error.problem)
        result: ListWalk[CodePointer] = ListWalk(gaps=places.gaps)
        for number, place in enumerate(places.found):
            result.rows[number] = self._row(place, code)
        code.add_to(result)
        return result

    @cached_property
    def _sources(self) -> tuple[tuple[str, Callable[[HookPlaces], None]], ...]:
        """These are the kinds of hooks, each with a symbol that every kernel has which has such hooks."""
        look = self._space, self._symbols
        return (
            ("ftrace_ops_list", self._of_ftrace),
            ("kprobe_table", self._of_kprobes),
            ("__start___tracepoints_ptrs", self._of_tracepoints),
            ("prog_idr", self._of_programs),
            ("nf_register_net_hook", partial(netfilter_hooks, *look)),
            ("inet_protos", partial(protocol_hooks, *look)),
            ("security_add_hooks", partial(security_hooks, *look)),
            ("panic_notifier_list", partial(notifier_hooks, *look)),
            (CONSTANTS, self._constants.hooks),
        )

    def _row(self, hook: HookPlace, code: KnownCode) -> CodePointer:
        owner = code.owner(hook.target)
        problem = "" if owner else "nobody's code is there"
        if hook.table == CONSTANTS:
            problem = "a constant of the kernel's leads out of it"
        symbol = self._symbol(hook.target) if owner == KERNEL else ""
        return CodePointer(
            hook.table, hook.entry, Va(hook.place), Va(hook.target), owner, symbol, problem
        )

    def _symbol(self, va: int) -> str:
        """This names a function of the kernel's, once."""
        if va not in self._names:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[va] = symbol_text(self._symbols, va)
        return self._names[va]

    def _of_ftrace(self, places: HookPlaces) -> None:
        walk = FtraceOps(self._space, self._symbols).all()
        places.gaps += walk.gaps
        for one in walk.rows.values():
            places.add("ftrace_ops_list", f"{one.address:#x}", one.place, one.function)

    def _of_kprobes(self, places: HookPlaces) -> None:
        probes = Kprobes(self._space, self._symbols)
        walk = probes.all()
        places.gaps += walk.gaps
        for one in walk.rows.values():
            before, after = one.address + probes.before_offset, one.address + probes.after_offset
            places.add("kprobe_table", f"before {one.place:#x}", before, one.before)
            places.add("kprobe_table", f"after {one.place:#x}", after, one.after)

    def _of_tracepoints(self, places: HookPlaces) -> None:
        walk = self._modules.modules()
        self._tracepoints.hooks(walk.rows.values(), places)

    @cached_property
    def _tracepoints(self) -> Tracepoints:
        return Tracepoints(self._space, self._symbols)

    def _of_programs(self, places: HookPlaces) -> None:
        """This adds where each eBPF program is run: by its own machine code, or by the interpreter."""
        at = address(self._symbols, "prog_idr")
        function = field_offset(self._symbols, "bpf_prog", "bpf_func")
        read = self._space.unpacker(_POINTER)
        programs = Idr(
            self._space,
            self._symbols,
            structure="prog_idr",
            at=at,
            limit=_MAX_PROGRAMS,
            levels=_IDR_LEVELS,
        )
        walk: ListWalk[int] = ListWalk()
        for number, program in programs.entries(walk):
            try:
                places.add("prog_idr", str(number), program + function, read(program + function)[0])
            except MemoryFault as fault:
                places.gap("prog_idr", program, str(fault))
        places.gaps += walk.gaps
