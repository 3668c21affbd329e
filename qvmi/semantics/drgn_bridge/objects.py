"""A kernel's global variables, functions and constants as drgn's objects.

References: drgn's ``Program.register_object_finder``; the files of Linux named above each group.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

from drgn import FindObjectFlags, Object, Program, Type, TypeMember, sizeof

from qvmi.addr import Va
from qvmi.semantics.drgn_bridge.types import BtfTypes
from qvmi.symbols.btf import BtfKind
from qvmi.symbols.isf_schema import Array, Base, EnumRef, Pointer, StructRef, TypeRef, UnionRef
from qvmi.symbols.known_types import ARRAYS_TO_NEXT_SYMBOL, KNOWN_TYPES
from qvmi.symbols.live import LiveSymbols

__all__ = ["KernelObjects"]

_MORE: Final[Mapping[str, str]] = {
    # mm/page_alloc.c, mm/memory.c, mm/util.c, mm/swapfile.c
    "_totalram_pages": "atomic_long_t",
    "max_low_pfn": "unsigned long",
    "min_low_pfn": "unsigned long",
    "max_pfn": "unsigned long",
    "total_swap_pages": "long",
    "nr_swapfiles": "unsigned int",
    "sysctl_overcommit_ratio": "int",
    "memblock": "struct memblock",
    # kernel/cpu.c, kernel/smp.c, mm/page_alloc.c
    "nr_cpu_ids": "unsigned int",
    "nr_node_ids": "unsigned int",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_online_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    # fs/proc/array.c, kernel/sched/core.c, kernel/panic.c, kernel/cgroup/cgroup.c
    "task_state_array": "const char * const [9]",
    "root_task_group": "struct task_group",
    "runqueues": "struct rq",
    "tainted_mask": "unsigned long",
    "init_css_set": "struct css_set",
    "cgrp_dfl_root": "struct cgroup_root",
    # kernel/irq/irqdesc.c, drivers/base
    "nr_irqs": "unsigned int",
    "class_kset": "struct kset *",
    "slab_kset": "struct kset *",
    "block_class": "struct class",
    "pci_root_buses": "struct list_head",
    "device_ktype": "struct kobj_type",
    "module_ktype": "struct kobj_type",
    # mm/vmalloc.c
    "vmap_area_list": "struct list_head",
    "vmap_area_root": "struct rb_root",
    "nr_vmap_nodes": "int",
}
"""What drgn's helpers look at beyond the types that readers of ISF files need, as C says it."""
_ARRAYS: Final[Mapping[str, str | TypeRef]] = {
    **ARRAYS_TO_NEXT_SYMBOL,
    "vm_node_stat": "atomic_long_t",
    "vm_zone_stat": "atomic_long_t",
    "node_states": "nodemask_t",
    "uidhash_table": "struct hlist_head",
}
"""The type of the elements of an array that ends where the next symbol begins."""
_MAX_ARRAY: Final = 1 << 16
"""Entries of the largest of them (``__per_cpu_offset``: 8192)."""
_TK_CORE: Final = "tk_core"
"""kernel/time/timekeeping.c; gone in 6.17."""


class KernelObjects:
    """This finds the objects of one kernel by name.

    Args:
        program: that they are for.
        symbols: of the kernel.
        types: of the kernel.
    """

    def __init__(self, program: Program, symbols: LiveSymbols, types: BtfTypes) -> None:
        self._program = program
        self._symbols = symbols
        self._types = types

    def find(self, name: str, flags: FindObjectFlags) -> Object | None:
        """This is an object, None where there is none of the kinds asked for, or its type is not known."""
        finders: tuple[tuple[FindObjectFlags, Callable[[str], Object | None]], ...] = (
            (FindObjectFlags.VARIABLE, self._variable),
            (FindObjectFlags.CONSTANT, self._constant),
            (FindObjectFlags.FUNCTION, self._function),
        )
        found = (find(name) for flag, find in finders if flags & flag)
        return next((one for one in found if one is not None), None)

    def _variable(self, name: str) -> Object | None:
        """This is a variable: its type is the kernel's word where it says one, else the known one."""
        known = self._variables.get(name)
        made = self._known_type(name) if known is None else self._types.make(known)
        address = None if made is None else self._symbols.find(name)
        if made is None or address is None:
            return None
        return Object(self._program, made, address=address)

    def _constant(self, name: str) -> Object | None:
        type_id = self._constants.get(name)
        if type_id is None:
            return None
        value = next(value for one, value in self._types.enumerators(type_id) if one == name)
        return Object(self._program, self._types.make(type_id), value)

    def _function(self, name: str) -> Object | None:
        type_id = self._functions.get(name)
        address = None if type_id is None else self._symbols.find(name)
        if type_id is None or address is None:
            return None
        return Object(self._program, self._types.make(type_id), address=address)

    @cached_property
    def _variables(self) -> dict[str, int]:
        """The type of each variable that BTF knows: those of each CPU."""
        records = (self._types.btf.type(one) for one in self._types.ids(BtfKind.VAR))
        return {record.name: record.size_or_type for record in records}

    @cached_property
    def _functions(self) -> dict[str, int]:
        records = (self._types.btf.type(one) for one in self._types.ids(BtfKind.FUNC))
        return {record.name: record.size_or_type for record in records}

    @cached_property
    def _constants(self) -> dict[str, int]:
        """The first enumeration that has an enumerator of each name."""
        found: dict[str, int] = {}
        for type_id in self._types.ids(BtfKind.ENUM, BtfKind.ENUM64):
            for name, _ in self._types.enumerators(type_id):
                found.setdefault(name, type_id)
        return found

    def _known_type(self, name: str) -> Type | None:
        """This is the type of a variable that BTF does not know, if this kernel has such a type."""
        try:
            if name in _MORE:
                return self._program.type(_MORE[name])
            if name in KNOWN_TYPES:
                return self._converted(KNOWN_TYPES[name])
            if name in _ARRAYS:
                return self._up_to_the_next_symbol(name)
            if name == _TK_CORE:
                return self._tk_core()
        except LookupError:
            return None
        return None

    def _up_to_the_next_symbol(self, name: str) -> Type:
        """This is an array whose end no type tells.

        Raises:
            LookupError: the kernel has no such elements.
        """
        known = _ARRAYS[name]
        element = self._program.type(known) if isinstance(known, str) else self._converted(known)
        address = self._symbols.find(name) or Va(0)
        room = self._symbols.kallsyms.end_of(address) - address
        return self._program.array_type(element, min(room // sizeof(element), _MAX_ARRAY))

    def _tk_core(self) -> Type:
        """This is the type without a name that ``tk_core`` has: a sequence counter and the timekeeper.

        Raises:
            LookupError: the kernel has no such thing.
        """
        timekeeper = self._program.type("struct timekeeper")
        try:
            counter = self._program.type("seqcount_raw_spinlock_t")  # since 5.9
        except LookupError:
            counter = self._program.type("seqcount_t")
        members = [
            TypeMember(counter, "seq", 0),
            TypeMember(timekeeper, "timekeeper", 64),
        ]
        return self._program.struct_type(None, 8 + sizeof(timekeeper), members)

    def _converted(self, known: TypeRef) -> Type:
        """This is a type of the table as drgn's.

        Raises:
            LookupError: the kernel has no such type.
        """
        match known:
            case Pointer(subtype):
                return self._program.pointer_type(self._converted(subtype))
            case Array(count, subtype):
                return self._program.array_type(self._converted(subtype), count)
            case StructRef(name):
                return self._program.type(f"struct {name}")
            case UnionRef(name):
                return self._program.type(f"union {name}")
            case EnumRef(name):
                return self._program.type(f"enum {name}")
            case Base(name):
                return self._program.type(name)
        raise LookupError(f"no type of drgn's for {known}")
