"""Adding a user's symbol file to what a guest tells of itself: what is new, and what contradicts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

from qvmi.addr import Va
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.kernel.given_symbols import symbols_from_isf
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbol
from qvmi.symbols.isf_file import IsfFile, IsfSymbols
from qvmi.symbols.isf_layout import IsfLayouts
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.merged_file import Conflict, Merge, MergedFile
from qvmi.symbols.type_layout import MemberLayout, TypeKind, TypeLayout, TypeName

__all__ = ["Known", "merged"]

_MAX_CONFLICTS: Final = 1000
"""Told one by one; a file with so many is of something else."""
_MAX_DIFFERENCES: Final = 5
"""Members named for each type; the first ones tell what is the matter."""
_UNNAMED: Final = "unnamed_"
"""How types without a name are called, by each program in a way of its own."""
_ADDRESS_MASK: Final = (1 << 64) - 1
_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Known:
    """This is what is known without the file.

    Args:
        kernel: that runs.
        module_symbols: of its modules.
        added: files that were added before.
        find_type: looks a type up, also in those.
    """

    kernel: Kernel
    module_symbols: Sequence[ModuleSymbol]
    added: Sequence[MergedFile]
    find_type: Callable[[TypeName], TypeLayout | None]

    def addresses(self) -> Mapping[str, set[Va]]:
        """These are all addresses that each name has: static functions may share theirs."""
        of_modules = ((row.name, row.address) for row in self.module_symbols)
        of_files = chain.from_iterable(file.symbols.items() for file in self.added)
        found: defaultdict[str, set[Va]] = defaultdict(set)
        for name, va in chain(self._of_kernel(), of_modules, of_files):
            found[name].add(va)
        return found

    def _of_kernel(self) -> Iterable[tuple[str, Va]]:
        symbols = self.kernel.symbols
        if isinstance(symbols, LiveSymbols):
            return ((one.name, one.address) for one in symbols.kallsyms.symbols())
        return _of_kernel(symbols).items() if isinstance(symbols, IsfSymbols) else ()


def merged(path: Path, base: Va | None, known: Known) -> tuple[MergedFile, Merge]:
    """This reads a file and compares it with what is known.

    Raises:
        UsageError: the file cannot be read, or is of another kernel.
        CorruptTable: it is damaged, or a table of the kernel contradicts itself.
    """
    file = IsfFile.read_any(path)
    if file.link_start:
        kernel = known.kernel
        placed = _of_kernel(symbols_from_isf(path, kernel.image, kernel.space))
    else:
        placed = {} if base is None else _moved(file, base)
    new, same, conflicts = _compared(placed, known.addresses())
    layouts = IsfLayouts(file, str(path))
    types, same_types, type_conflicts = _compared_types(file, layouts, known.find_type)
    told = tuple(islice(chain(conflicts, type_conflicts), _MAX_CONFLICTS))
    unplaced = 0 if placed else len(file.content.symbols)
    result = Merge(path, len(new), len(types), same + same_types, unplaced, told)
    return MergedFile(file, new, frozenset(types)), result


def _of_kernel(symbols: IsfSymbols) -> dict[str, Va]:
    found = ((name, symbols.find(name)) for name in symbols.file.content.symbols)
    return {name: va for name, va in found if va is not None}


def _moved(file: IsfFile, base: Va) -> dict[str, Va]:
    found = ((name, file.address(name)) for name in file.content.symbols)
    return {name: Va(va + base & _ADDRESS_MASK) for name, va in found if va is not None}


def _compared(
    placed: Mapping[str, Va], known: Mapping[str, set[Va]]
) -> tuple[dict[str, Va], int, list[Conflict]]:
    """This is what is new, how much is known, and what contradicts."""
    new: dict[str, Va] = {}
    conflicts: list[Conflict] = []
    same = 0
    for name, va in placed.items():
        addresses = known.get(name)
        if not addresses:
            new[name] = va
        elif va in addresses:
            same += 1
        else:
            shown = ", ".join(f"{one:#x}" for one in sorted(addresses))
            conflicts.append(Conflict(name, shown, f"{va:#x}"))
    return new, same, conflicts


def _compared_types(
    file: IsfFile, layouts: IsfLayouts, find: Callable[[TypeName], TypeLayout | None]
) -> tuple[list[str], int, list[Conflict]]:
    new: list[str] = []
    conflicts: list[Conflict] = []
    same = 0
    for wanted in _types_of(file):
        known = find(wanted) or _other_kind(wanted, find)
        theirs = None if known is None else layouts.find(wanted)
        if known is None:
            new.append(wanted.name)
        elif theirs is not None:
            differences = list(islice(_differences(known, theirs), _MAX_DIFFERENCES))
            if differences:
                ours, refused = zip(*differences, strict=True)
                name = f"{theirs.kind.value} {wanted.name}"
                conflicts.append(Conflict(name, "; ".join(ours), "; ".join(refused)))
            else:
                same += 1
    return new, same, conflicts


def _types_of(file: IsfFile) -> Iterator[TypeName]:
    names = file.content.user_types
    yield from (TypeName(name, None) for name in names if not name.startswith(_UNNAMED))
    enums = file.content.enums
    yield from (TypeName(name, TypeKind.ENUM) for name in enums if not name.startswith(_UNNAMED))


def _other_kind(
    wanted: TypeName, find: Callable[[TypeName], TypeLayout | None]
) -> TypeLayout | None:
    """This is the typedef of that name: an enumeration without a name is called so in such files."""
    return find(TypeName(wanted.name, None)) if wanted.kind is TypeKind.ENUM else None


def _differences(known: TypeLayout, theirs: TypeLayout) -> Iterator[tuple[str, str]]:
    """These are the things that two layouts of one name do not agree in."""
    if known.size != theirs.size:
        yield f"{known.size} bytes", f"{theirs.size} bytes"
    pairs = (
        (_places(known.members), _places(theirs.members)),
        (
            {one.name: f"= {one.value}" for one in known.constants},
            {one.name: f"= {one.value}" for one in theirs.constants},
        ),
    )
    for ours, others in pairs:
        for name in ours.keys() | others.keys():
            mine, other = ours.get(name, "is not there"), others.get(name, "is not there")
            if mine != other:
                yield f"{name} {mine}", f"{name} {other}"


def _places(members: Iterable[MemberLayout]) -> dict[str, str]:
    """These are the members that have a name, those of anonymous ones as if they were the struct's."""
    found: dict[str, str] = {}
    for one in members:
        if one.name:
            bits = f", {one.bit_size} bits from {one.bit_offset}" if one.bit_size else ""
            found[one.name] = f"at {one.offset}{bits}"
        else:
            found |= _places(one.members)
    return found
