"""What memory mappings are called: after their file, or after what the kernel put there.

References: Linux fs/proc/task_mmu.c (``show_map_vma``), mm/mmap.c (``special_mapping_name``),
include/linux/mm_inline.h (``anon_vma_name``).
"""

from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.fs.inode import Inodes
from qvmi.semantics.linux.fs.path_memo import KnownPaths
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Around", "MappedFile", "MappingNames", "Vma"]

_MAX_OPERATIONS: Final = 256
"""Tables of operations that are remembered: a kernel has some hundred."""
_MAX_SPECIAL_NAME: Final = 80
"""``ANON_VMA_NAME_MAX_LEN``; the names of special mappings are shorter."""
_POINTER: Final = Struct("<Q")


class Vma(NamedTuple):
    """These are the members of a ``vm_area_struct`` that rows are made of, and its links in a list."""

    start: int
    end: int
    mm: int
    flags: int
    operations: int
    page_offset: int
    file: int
    private: int
    following: int = 0
    before: int = 0


class MappedFile(NamedTuple):
    """This is what rows say of a mapped file."""

    device: str = ""
    inode: int = 0
    name: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Around:
    """This is what names of one process's mappings depend on.

    Args:
        start_brk, brk: between them is the heap.
        stack: where the first thread's stack began.
        effort: what naming may cost.
        paths: names files.
        files: what was read of files so far, by their addresses.
    """

    start_brk: int
    brk: int
    stack: int
    effort: Effort
    paths: KnownPaths
    files: dict[int, MappedFile] = field(default_factory=dict)


class MappingNames:
    """This says what the mappings of one kernel are called.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what names need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._inodes = Inodes(space, symbols)
        path = field_offset(symbols, "file", "f_path")
        self._read_file = compile_reader(
            space,
            (path + field_offset(symbols, "path", "mnt"), "Q"),
            (path + field_offset(symbols, "path", "dentry"), "Q"),
            (field_offset(symbols, "file", "f_inode"), "Q"),
        )
        self._read_pointer = space.unpacker(_POINTER)
        self._special = symbols.find("special_mapping_name")
        self._special_name = field_offset(symbols, "vm_special_mapping", "name")
        self._operation = field_offset(symbols, "vm_operations_struct", "name")
        self._name_of: dict[int, int] = {}
        anonymous = symbols.find_field("vm_area_struct", ("anon_name",))
        self._anonymous = None if anonymous is None else anonymous.offset
        self._anonymous_text = 0
        if anonymous is not None:
            self._anonymous_text = field_offset(symbols, "anon_vma_name", "name")

    def of(self, around: Around, vma: int, its: Vma) -> MappedFile:
        """This is what is shown of a mapping behind its offset. Corresponds to ``show_map_vma``."""
        if its.file:
            known = around.files.get(its.file)
            if known is None:
                known = around.files[its.file] = self.file(its.file, around.paths)
            return known
        if its.operations and self._named_by(its.operations) == self._special:
            at = self._read_pointer(its.private + self._special_name)[0]
            return MappedFile(name=text_of(self._space.read_string(Va(at), _MAX_SPECIAL_NAME)))
        if its.start < around.brk and its.end > around.start_brk:
            return MappedFile(name="[heap]")
        if its.start <= around.stack <= its.end:
            return MappedFile(name="[stack]")
        return MappedFile(name=self._anonymous_name(vma))

    def file(self, file: int, paths: KnownPaths) -> MappedFile:
        """This is what is shown of a ``struct file``."""
        mount, dentry, inode = self._read_file(file)
        path = paths.of(mount, dentry)
        its = self._inodes.at(inode)
        return MappedFile(its.device, its.number, path.text, path.deleted)

    def _named_by(self, operations: int) -> int:
        """This is the function ``name`` of a table of operations, 0 for none; it never changes."""
        known = self._name_of.get(operations)
        if known is None:
            known = int(self._read_pointer(operations + self._operation)[0])
            if len(self._name_of) < _MAX_OPERATIONS:
                self._name_of[operations] = known
        return known

    def _anonymous_name(self, vma: int) -> str:
        """This is the name that the program gave to a mapping by ``PR_SET_VMA_ANON_NAME``."""
        at = 0 if self._anonymous is None else self._read_pointer(vma + self._anonymous)[0]
        if not at:
            return ""
        text = self._space.read_string(Va(at + self._anonymous_text), _MAX_SPECIAL_NAME)
        return f"[anon:{text_of(text)}]"
