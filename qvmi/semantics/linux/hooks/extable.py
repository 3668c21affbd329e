"""Whose code is at an address: the kernel's, a module's, an eBPF program's, or a trampoline's.

References: Linux kernel/extable.c (``kernel_text_address``, ``core_kernel_text``), kernel/bpf/core.c
(``bpf_kallsyms``, ``struct bpf_ksym``, since 5.7: images of trampolines and dispatchers are in it, too),
kernel/trace/ftrace.c (``ftrace_ops_list``, ``is_ftrace_trampoline``; ``ftrace_ops_trampoline_list``, since
5.9, keeps a trampoline until it is freed), kernel/kprobes.c (``kprobe_insn_slots``,
``kprobe_optinsn_slots``).
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.hooks.ftrace_ops import FtraceOps
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_text import ModuleText
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["KERNEL", "CodeRange", "KnownCode"]

KERNEL: Final = "kernel"
_BPF_NAME: Final = 64
"""Bytes looked at of a program's name; ``bpf_prog_``, a tag and 16 letters take less."""
_MAX_BPF: Final = 100_000
"""Programs, trampolines and dispatchers; a host full of containers has some thousand."""
_MAX_BPF_SIZE: Final = 1 << 26
"""Bytes of one of them."""
_MAX_PAGES: Final = 1 << 16
"""Pages of instructions that kprobes have moved away; tracing every function takes some thousand."""
_TRAMPOLINE: Final = "ftrace trampoline"
_TRAMPOLINES: Final = "ftrace_ops_trampoline_list"
_MAX_TRAMPOLINES: Final = 10_000
"""As many as there may be who trace functions."""
_MAX_TRAMPOLINE: Final = 1 << 16
"""Bytes of one trampoline; x86-64's have some 300."""
_SLOT_CACHES: Final = ("kprobe_insn_slots", "kprobe_optinsn_slots")


class CodeRange(NamedTuple):
    """This is a run of addresses that hold code, [start, end), and whose it is."""

    start: int
    end: int
    owner: str


class KnownCode:
    """This tells what code there is at one moment; it is made for one look.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists the modules.

    Attributes:
        gaps: what could not be looked at: code behind it seems to be nobody's.
        retries: how often something was read again.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, modules: Modules) -> None:
        self._space = space
        self._symbols = symbols
        self._modules = modules
        self.start = address(symbols, "_stext")
        self.end = address(symbols, "_etext")
        self.gaps: list[Gap] = []
        self.retries = 0

    def owner(self, va: int) -> str:
        """This says whose code is at an address; empty for nobody's.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        if self.start <= va < self.end:
            return KERNEL
        at = bisect_right(self._starts, va) - 1
        if at < 0:
            return ""
        found = self.elsewhere[at]
        return found.owner if va < found.end else ""

    @cached_property
    def elsewhere(self) -> tuple[CodeRange, ...]:
        """This is all code outside of the kernel's image, by address."""
        return tuple(sorted((*self._of_modules(), *self._of_tracers(), *self._of_lists())))

    @cached_property
    def _starts(self) -> list[int]:
        return [one.start for one in self.elsewhere]

    def _of_modules(self) -> Iterator[CodeRange]:
        walk = self._modules.modules()
        self.gaps += walk.gaps
        self.retries += walk.retries
        text = ModuleText(self._space, self._symbols)
        for module in walk.rows.values():
            try:
                runs = text.of(module)
            except MemoryFault:
                continue  # it was unloaded in the meantime
            yield from (CodeRange(start, end, module.name) for start, end in runs)

    def _of_tracers(self) -> Iterator[CodeRange]:
        ops = FtraceOps(self._space, self._symbols).all()
        self.gaps += ops.gaps
        for one in ops.rows.values():
            if one.trampoline:
                yield CodeRange(one.trampoline, one.trampoline_end, _TRAMPOLINE)

    def _of_lists(self) -> Iterator[CodeRange]:
        """This iterates the code of which the kernel keeps lists, those of them that this one has."""
        for name, shape_of in (
            ("bpf_kallsyms", self._bpf),
            (_TRAMPOLINES, self._trampolines),
            *((cache, self._slots) for cache in _SLOT_CACHES),
        ):
            head = self._symbols.find(name)
            if head is None:
                continue
            try:
                start, shape = shape_of(name, head)
                walk = walk_list(self._space, start, shape)
            except SymbolsError as error:
                self.gaps.append(Gap(name, head, str(error)))
            except WalkFailed as error:
                self.gaps.append(Gap(error.structure, None, error.problem))
            else:
                self.gaps += walk.gaps
                self.retries += walk.retries
                yield from walk.rows.values()

    def _bpf(self, name: str, head: Va) -> tuple[Va, ListShape[CodeRange]]:
        link = field_offset(self._symbols, "bpf_ksym", "lnode")
        read = compile_reader(
            self._space,
            (link, "Q"),
            (link + 8, "Q"),
            (field_offset(self._symbols, "bpf_ksym", "start"), "Q"),
            (field_offset(self._symbols, "bpf_ksym", "end"), "Q"),
            (field_offset(self._symbols, "bpf_ksym", "name"), f"{_BPF_NAME}s"),
        )
        return head, ListShape(name, link, read, _bpf_range, _MAX_BPF)

    def _trampolines(self, name: str, head: Va) -> tuple[Va, ListShape[CodeRange]]:
        """These are also of those who trace no more, while functions still lead there."""
        link = field_offset(self._symbols, "ftrace_ops", "list")
        start = field_offset(self._symbols, "ftrace_ops", "trampoline")
        size = field_offset(self._symbols, "ftrace_ops", "trampoline_size")
        read = compile_reader(self._space, (link, "Q"), (link + 8, "Q"), (start, "Q"), (size, "Q"))
        return head, ListShape(name, link, read, _trampoline_range, _MAX_TRAMPOLINES)

    def _slots(self, name: str, cache: Va) -> tuple[Va, ListShape[CodeRange]]:
        head = Va(cache + field_offset(self._symbols, "kprobe_insn_cache", "pages"))
        link = field_offset(self._symbols, "kprobe_insn_page", "list")
        insns = field_offset(self._symbols, "kprobe_insn_page", "insns")
        read = compile_reader(self._space, (link, "Q"), (link + 8, "Q"), (insns, "Q"))
        return head, ListShape(name, link, read, _slot_range, _MAX_PAGES)

    def add_to(self, result: ListWalk[Any]) -> None:
        """This tells a walk what could not be looked at, and how often something was read again."""
        result.gaps += self.gaps
        result.retries += self.retries


def _bpf_range(_: Va, values: tuple[Any, ...]) -> CodeRange:
    _, _, start, end, name = values
    if not 0 < end - start < _MAX_BPF_SIZE:
        raise Implausible(f"code from {start:#x} to {end:#x}")
    text = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return CodeRange(start, end, f"bpf {text}")


def _trampoline_range(_: Va, values: tuple[Any, ...]) -> CodeRange:
    return CodeRange(values[2], values[2] + min(values[3], _MAX_TRAMPOLINE), _TRAMPOLINE)


def _slot_range(_: Va, values: tuple[Any, ...]) -> CodeRange:
    return CodeRange(values[2], values[2] + PAGE_SIZE, "kprobe slots")
