"""Names and types of the kernel that runs, its modules, and the files that a user adds, as one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, SymbolNotFound, SymbolsError, WalkFailed
from qvmi.semantics.guest_os import Gap, Listing
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.kernel.merging import Known, merged
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbol
from qvmi.semantics.linux.modules.module_types import ModuleBtf
from qvmi.symbols.btf_layout import BtfLayouts
from qvmi.symbols.isf_file import IsfSymbols
from qvmi.symbols.isf_layout import IsfLayouts
from qvmi.symbols.layout import Field, NearestSymbol
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.merged_file import Merge, MergedFile
from qvmi.symbols.type_layout import MemberLayout, TypeKind, TypeLayout, TypeName

__all__ = ["Additions", "GuestSymbols"]


@dataclass(slots=True)
class Additions:
    """These are the files that were added to one guest, whichever view it is seen through."""

    files: list[MergedFile] = field(default_factory=list)


class Layouts(Protocol):
    """This answers for types by name."""

    def find(self, wanted: TypeName) -> TypeLayout | None:
        """This is the type of a name, None where there is none."""
        ...


class GuestSymbols:
    """This answers for one guest. It implements :class:`qvmi.symbols.layout.Symbols`.

    What the kernel tells of itself comes first, then what its modules tell, then the files that were
    added, in their order.

    Args:
        kernel: that runs.
        module_symbols: lists the symbols of its modules.
        module_types: lists their types.
        nearest: names an address of the kernel or a module.
        additions: the files that were added.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        module_symbols: Callable[[], Listing[ModuleSymbol]],
        module_types: Callable[[], Listing[ModuleBtf]],
        nearest: Callable[[Va], NearestSymbol | None],
        additions: Additions,
    ) -> None:
        self._kernel = kernel
        self._module_symbols = module_symbols
        self._module_types = module_types
        self._nearest = nearest
        self._additions = additions

    def symbol(self, name: str) -> NearestSymbol:
        """This is what is known of a symbol; of several of one name it is the kernel's first.

        Raises:
            SymbolNotFound: nobody has such a symbol.
            WalkFailed: perhaps a module has it that could not be looked at.
            CorruptTable: a table contradicts itself, or cannot be read.
        """
        va = self._kernel.symbols.find(name)
        if va is not None:
            nearest = self._kernel.symbols.nearest(va)
            is_it = nearest is not None and nearest.name == name
            # Its type is known where no other name stands at the same address.
            return nearest if nearest and is_it else NearestSymbol(name, va, "", "")
        modules = self._module_symbols()
        row = next((one for one in modules if one.name == name), None)
        if row is not None:
            return NearestSymbol(row.name, row.address, row.type, row.module)
        for file in self._additions.files:
            if name in file.symbols:
                return NearestSymbol(name, file.symbols[name], "", "")
        _require_whole(modules.gaps)
        raise SymbolNotFound(name)

    def find(self, name: str) -> Va | None:
        """This is a symbol's address, None where nobody has such a symbol.

        Raises:
            WalkFailed, CorruptTable: as :meth:`symbol`.
        """
        try:
            return self.symbol(name).address
        except SymbolNotFound:
            return None

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the symbol at or before an address, in the kernel, a module or a file.

        Returns:
            None outside of all of them.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
            CorruptTable: as :meth:`symbol`.
        """
        known = self._nearest(va)
        added = (file.nearest(va) for file in self._additions.files)
        found = [one for one in (known, *added) if one is not None]
        return max(found, key=lambda one: one.address, default=None)  # of equal ones the first

    def type(self, name: str) -> TypeLayout:
        """This is the layout of a type.

        Args:
            name: such as ``task_struct``, ``struct task_struct``, ``pid_t`` or ``enum pid_type``.

        Raises:
            LayoutNotFound: nobody has such a type.
            WalkFailed: perhaps a module has it that could not be looked at.
            CorruptTable: as :meth:`symbol`.
        """
        found, gaps = self._find_type(TypeName.of(name))
        if found is not None:
            return found
        _require_whole(gaps)
        raise LayoutNotFound(name)

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This is the first of several members that a struct has; anonymous members are searched.

        Raises:
            CorruptTable: as :meth:`symbol`.
        """
        found = self._kernel.symbols.find_field(type_name, names)
        if found is not None or self._kernel.symbols.size_of(type_name) is not None:
            return found
        layout = self._compound(type_name)
        members = {one.name: one for one in _named(layout.members)} if layout else {}
        member = next((members[name] for name in names if name in members), None)
        if member is None:
            return None
        return Field(member.name, member.offset, member.bit_offset, member.bit_size)

    def size_of(self, type_name: str) -> int | None:
        """This is the size of a struct or union in bytes, None where it is unknown.

        Raises:
            CorruptTable: as :meth:`symbol`.
        """
        known = self._kernel.symbols.size_of(type_name)
        if known is not None:
            return known
        layout = self._compound(type_name)
        return None if layout is None else layout.size

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        """This is the value of an enumerator; None where the enumeration is unknown or lacks it.

        Raises:
            CorruptTable: as :meth:`symbol`.
        """
        known = self._kernel.symbols.find_enumerator(type_name, name)
        if known is not None:
            return known
        layout, _ = self._find_type(TypeName(type_name, TypeKind.ENUM))
        constants = layout.constants if layout else ()
        return next((one.value for one in constants if one.name == name), None)

    def merge(self, path: Path, *, base: Va | None = None) -> Merge:
        """This adds the symbols and types of a Volatility 3 symbol file (ISF), while the guest runs.

        What is known already stays as it is, and is told of where the file says something else.

        Args:
            path: of the file: of the kernel that runs, or of anything else in it, such as a module.
            base: what is to be added to the addresses in a file that is not a kernel's. Without it the
                types are taken alone.

        Raises:
            UsageError: the file cannot be read, or is of another kernel.
            CorruptTable: it is damaged, or a table of the kernel contradicts itself.
            WalkFailed: the list of modules cannot be walked at all.
        """
        modules, _ = self._of_modules
        known = Known(
            self._kernel,
            self._module_symbols().items,
            self._additions.files,
            lambda wanted: self._find_among(modules, wanted),
        )
        file, result = merged(path, base, known)
        self._additions.files.append(file)
        return result

    def _compound(self, name: str) -> TypeLayout | None:
        for kind in (TypeKind.STRUCT, TypeKind.UNION):
            found, _ = self._find_type(TypeName(name, kind))
            if found is not None:
                return found
        return None

    def _find_type(self, wanted: TypeName) -> tuple[TypeLayout | None, Sequence[Gap]]:
        """This looks everywhere, and says where that was not possible."""
        found = None if self._of_kernel is None else self._of_kernel.find(wanted)
        if found is not None:
            return found, ()
        modules, gaps = self._of_modules
        return self._find_among(modules, wanted), gaps

    def _find_among(self, modules: Sequence[Layouts], wanted: TypeName) -> TypeLayout | None:
        """This looks in the kernel, some modules, and the files that were added."""
        kernel = () if self._of_kernel is None else (self._of_kernel,)
        added = (file.layouts for file in self._additions.files if wanted.name in file.types)
        candidates = (one.find(wanted) for one in (*kernel, *modules, *added))
        return next((one for one in candidates if one is not None), None)

    @cached_property
    def _of_kernel(self) -> Layouts | None:
        symbols = self._kernel.symbols
        if isinstance(symbols, LiveSymbols):
            return None if symbols.btf is None else BtfLayouts(symbols.btf)
        return IsfLayouts(symbols.file) if isinstance(symbols, IsfSymbols) else None

    @property
    def _of_modules(self) -> tuple[Sequence[Layouts], Sequence[Gap]]:
        """The types of the modules that are loaded now."""
        try:
            listing = self._module_types()
        except SymbolsError:  # the kernel has no types in memory, and so have they none
            return (), ()
        key = tuple((one.name, one.module) for one in listing)
        if self._known_modules is None or self._known_modules[0] != key:
            made = [BtfLayouts(one.btf, one.name) for one in listing]
            self._known_modules = (key, made)
        return self._known_modules[1], listing.gaps

    _known_modules: tuple[object, Sequence[Layouts]] | None = None


def _named(members: Sequence[MemberLayout]) -> Iterator[MemberLayout]:
    """These are the members that have a name, those of anonymous ones as if they were the struct's."""
    for member in members:
        if member.name:
            yield member
        else:
            yield from _named(member.members)


def _require_whole(gaps: Sequence[Gap]) -> None:
    """This raises where something that was asked for may be where one could not look."""
    for gap in gaps:
        raise WalkFailed(gap.structure, gap.reason)
