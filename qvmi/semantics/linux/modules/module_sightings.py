"""Where else than in the list of modules a module can be seen.

References: Linux kernel/module/tree_lookup.c (``mod_tree``), include/linux/rbtree_latch.h, kernel/params.c
(``module_kset``, ``struct module_kobject``), lib/bug.c (``module_bug_list``), kernel/module/main.c
(``free_module``: a module that goes is ``MODULE_STATE_UNFORMED`` before it leaves the list).
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any, Final

from qvmi.addr import PAGE_SIZE, Va
from qvmi.arch.paging import extents
from qvmi.errors import MemoryFault, SymbolsError, TranslationFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, ModuleSighting
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.rbtree import RbTree
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset, struct_size

__all__ = ["MODULES", "ModuleSightings"]

MODULES: Final = "modules"
"""The list that /proc/modules and lsmod show."""

_NAME_SIZE: Final = 56
"""``MODULE_NAME_LEN`` on 64-bit kernels."""
_STATES: Final = ("live", "coming", "going", "unformed")
_MAX_MODULES: Final = 10_000
"""A full distribution loads some hundred."""
_MAX_LAYOUTS: Final = 8 * _MAX_MODULES
"""Nodes of the tree: one for each part of a module."""
_ALIGNMENT: Final = 64
"""Of ``struct module``, which is ``____cacheline_aligned``; some arm64 kernels have 128."""
_WINDOW: Final = 2 << 30
"""Bytes before and behind the image in which modules are loaded: branches must reach the kernel."""
_MAX_SCANNED: Final = 256 << 20
"""Bytes that are looked through; a full distribution's modules take some 50 MiB."""
_CHUNK: Final = 4 << 20
"""Bytes that are read at once: a guest can map all of that in one run."""
_ADDRESSES: Final = 1 << 64
_KERNEL_HALF: Final = 1 << 63
_POINTER: Final = Struct("<Q")
_SEQUENCE: Final = Struct("<I")


class ModuleSightings:
    """This looks for modules in all structures of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        image: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, image: KernelImage) -> None:
        self._space = space
        self._symbols = symbols
        self._image = image
        self._self = field_offset(symbols, "module", "mkobj") + field_offset(
            symbols, "module_kobject", "mod"
        )
        self._sources = field_offset(symbols, "module", "source_list")
        self._targets = field_offset(symbols, "module", "target_list")
        within = max(self._self, self._sources, self._targets) + _POINTER.size
        self._overlap = -(-within // PAGE_SIZE) * PAGE_SIZE  # a struct may lie across two chunks
        self._read = compile_reader(
            space,
            (field_offset(symbols, "module", "state"), "I"),
            (field_offset(symbols, "module", "name"), f"{_NAME_SIZE}s"),
        )
        self._read_pointer = space.unpacker(_POINTER)

    def all(self) -> ListWalk[ModuleSighting]:
        """This lists every sighting: a module has several, the list of modules first.

        Raises:
            SymbolsError: the profile lacks what the list of modules needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        result: ListWalk[ModuleSighting] = ListWalk()
        link = field_offset(self._symbols, "module", "list")
        self._add(result, MODULES, self._listed(MODULES, "module.list", link, result))
        ways: tuple[tuple[str, Callable[[ListWalk[ModuleSighting]], Iterable[int]]], ...] = (
            ("mod_tree", self._in_tree),
            ("module_kset", self._in_kset),
            ("module_bug_list", self._with_bugs),
            ("memory", self._in_memory),
        )
        for structure, find in ways:
            try:
                self._add(result, structure, find(result))
            except SymbolsError as error:
                at = self._symbols.find(structure)
                if at is not None:  # else this kernel has no such structure
                    result.gaps.append(Gap(structure, at, str(error)))
            except WalkFailed as error:
                result.gaps.append(Gap(error.structure, None, error.problem))
            except MemoryFault as fault:
                result.gaps.append(Gap(structure, None, str(fault)))
        return result

    def _add(
        self, result: ListWalk[ModuleSighting], structure: str, modules: Iterable[int]
    ) -> None:
        for module in dict.fromkeys(modules):
            try:
                row = self._row(structure, module)
            except (MemoryFault, Implausible) as error:
                result.gaps.append(Gap(structure, Va(module), str(error)))
            else:
                if structure != MODULES or row.state != "unformed":
                    result.rows[len(result.rows)] = row

    def _row(self, structure: str, module: int) -> ModuleSighting:
        state, name = self._read(module)
        text, end, _ = name.partition(b"\0")
        if state >= len(_STATES) or not end or not text:
            raise Implausible(f"module state {state}, name {name[:16]!r}")
        decoded = text.decode("utf-8", "backslashreplace")
        return ModuleSighting(structure, decoded, _STATES[state], Va(module))

    def _listed(
        self, head: str, structure: str, link: int, result: ListWalk[ModuleSighting]
    ) -> Iterable[int]:
        """These are the structs on a list."""
        read = compile_reader(self._space, (link, "Q"), (link + 8, "Q"))
        shape: ListShape[int] = ListShape(structure, link, read, _same, _MAX_MODULES)
        walk = walk_list(self._space, address(self._symbols, head), shape)
        result.gaps += walk.gaps
        result.retries += walk.retries
        return walk.rows

    def _with_bugs(self, result: ListWalk[ModuleSighting]) -> Iterable[int]:
        link = field_offset(self._symbols, "module", "bug_list")
        return self._listed("module_bug_list", "module.bug_list", link, result)

    def _in_kset(self, result: ListWalk[ModuleSighting]) -> Iterable[int]:
        """These are the modules in sysfs; what is built in has a folder there, too, and no module."""
        kset = self._read_pointer(address(self._symbols, "module_kset"))[0]
        entry = field_offset(self._symbols, "kobject", "entry")
        kobject = field_offset(self._symbols, "module_kobject", "kobj")
        module = field_offset(self._symbols, "module_kobject", "mod")
        link = kobject + entry
        read = compile_reader(self._space, (link, "Q"), (link + 8, "Q"), (module, "Q"))
        head = Va(kset + field_offset(self._symbols, "kset", "list"))
        shape = ListShape("module_kset", link, read, _third, _MAX_MODULES)
        walk = walk_list(self._space, head, shape)
        result.gaps += walk.gaps
        result.retries += walk.retries
        return [found for found in walk.rows.values() if found]

    def _in_tree(self, result: ListWalk[ModuleSighting]) -> Iterable[int]:
        """These are the modules in the tree by which a code address is found to be a module's."""
        symbols = self._symbols
        root = address(symbols, "mod_tree") + field_offset(symbols, "mod_tree_root", "root")
        sequence = self._space.unpacker(_SEQUENCE)
        at = root + field_offset(symbols, "latch_tree_root", "seq")
        chosen = sequence(at)[0] & 1
        trees = root + field_offset(symbols, "latch_tree_root", "tree") + chosen * _POINTER.size
        top = self._read_pointer(trees + field_offset(symbols, "rb_root", "rb_node"))[0]
        size = struct_size(symbols, "rb_node")
        node = field_offset(symbols, "mod_tree_node", "node") + chosen * size
        node += field_offset(symbols, "latch_tree_node", "node")
        module = field_offset(symbols, "mod_tree_node", "mod")
        try:
            nodes, gaps = RbTree(self._space, symbols).nodes(top, "mod_tree", Effort(_MAX_LAYOUTS))
        except Spent as error:
            raise WalkFailed("mod_tree", str(error)) from error
        if sequence(at)[0] & 1 != chosen:  # it was changed under us: the next look sees it whole
            result.retries += 1
            gaps = []
        result.gaps += gaps
        return [self._read_pointer(one - node + module)[0] for one in nodes]

    def _in_memory(self, result: ListWalk[ModuleSighting]) -> Iterator[int]:
        """This iterates what looks like a ``struct module`` where modules are loaded."""
        room = _MAX_SCANNED
        for start, end in self._runs(result):
            room -= end - start
            if room < 0:
                result.gaps.append(Gap("memory", start, f"more than {_MAX_SCANNED >> 20} MiB"))
                return
            for at in range(start, end, _CHUNK):
                size = min(_CHUNK + self._overlap, end - at)
                try:
                    words = array("Q", self._space.read(Va(at), size))
                except MemoryFault:
                    continue  # of a device, or unmapped in the meantime
                yield from self._like_modules(at, words)

    def _like_modules(self, start: int, words: "array[int]") -> Iterator[int]:
        """This iterates the places at which what should point to itself does."""
        step, size = _ALIGNMENT // _POINTER.size, _POINTER.size
        own = words[self._self // size :: step]
        sources = words[self._sources // size :: step]
        targets = words[self._targets // size :: step]
        from_source, from_target = self._sources, self._targets
        for module, itself, source, target in zip(
            range(start, start + len(words) * size, _ALIGNMENT), own, sources, targets, strict=False
        ):
            if itself == module or (
                source == module + from_source and target == module + from_target
            ):
                try:
                    row = self._row("memory", module)
                except (MemoryFault, Implausible):
                    continue
                if row.name.isprintable() and row.name.isascii():
                    yield module

    def _runs(self, result: ListWalk[ModuleSighting]) -> Iterator[tuple[Va, Va]]:
        """This iterates what is mapped around the image, where branches reach the kernel."""
        image, space = self._image, self._space
        low, high = max(image.start - _WINDOW, _KERNEL_HALF), min(image.end + _WINDOW, _ADDRESSES)
        for start, end in ((low, image.start), (image.end, high)):
            first = last = 0
            try:
                for extent in extents(
                    space.memory.read, space.root, space.geometry, Va(start), Va(end)
                ):
                    if extent.va != last:
                        if last > first:
                            yield Va(first), Va(last)
                        first = extent.va
                    last = extent.va + extent.size
            except TranslationFault as fault:
                result.gaps.append(Gap("memory", Va(start), str(fault)))
            if last > first:
                yield Va(first), Va(last)


def _same(at: Va, _: tuple[Any, ...]) -> int:
    return at


def _third(_: Va, values: tuple[Any, ...]) -> int:
    found: int = values[2]
    return found
