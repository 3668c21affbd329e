"""Symbols of a kernel out of an ISF file that the user gives, whoever wrote it.

References: Volatility 3 volatility3/schemas/schema-6.2.0.json and older ones; dwarf2json main.go:
before 0.6 it cut addresses to 48 bits, and members without a name were not marked as such.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Self, TypeVar

import msgspec

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import CorruptTable, UsageError
from qvmi.symbols.isf_compression import decompress
from qvmi.symbols.layout import Field, NearestSymbol
from qvmi.symbols.whole_file import open_regular

__all__ = ["IsfFile", "IsfSymbols"]

_Decoded = TypeVar("_Decoded")

_MAX_FILE: Final = 128 << 20
"""Bytes of JSON. Distributions' kernels take 13 to 60 MiB; they are held in memory."""

_MAX_DEPTH: Final = 16
"""Anonymous structs nest two or three levels deep; deeper is a loop."""

_MAX_MEMBERS: Final = 10_000
"""``task_struct`` has about 250, those of anonymous structs in it included."""

_MAX_STRUCT: Final = 1 << 24
"""Bytes; the largest structs of kernels have some 100 KiB."""

_ADDRESS_BITS: Final = 64
_ADDRESS_MASK: Final = (1 << _ADDRESS_BITS) - 1
_LEAST_ADDRESS_BITS: Final = 39
"""The smallest virtual addresses of a 64-bit Linux (aarch64)."""

_KERNEL_HALF: Final = 1 << (_ADDRESS_BITS - 1)
"""What lies below is no address but an offset into per-CPU areas, which KASLR does not move."""

_ANONYMOUS: Final = "unnamed_field_"
"""How members without a name were called before the format could mark them."""

_UNKNOWN_TYPE: Final = "?"
"""What ``nm`` shows for symbols of unknown type: the format has no letter for them."""


_Bytes = Annotated[int, msgspec.Meta(ge=0, le=_MAX_STRUCT)]


class _Symbol(msgspec.Struct, frozen=True, gc=False):
    address: int
    constant_data: bytes | None = None


class _Type(msgspec.Struct, frozen=True, gc=False):
    """This is as much of a member's type as is needed to find it."""

    kind: str
    name: str = ""
    bit_position: int = 0
    bit_length: int = 0


class _Member(msgspec.Struct, frozen=True, gc=False):
    offset: _Bytes
    type: _Type | None = None
    anonymous: bool = False


class _UserType(msgspec.Struct, frozen=True, gc=False):
    size: _Bytes
    fields: dict[str, _Member]


class _Enum(msgspec.Struct, frozen=True, gc=False):
    constants: dict[str, int]


class _File(msgspec.Struct, frozen=True, gc=False):
    """This is the file, with its types as they stand there until one is asked for."""

    symbols: dict[str, _Symbol]
    user_types: dict[str, msgspec.Raw]
    enums: dict[str, msgspec.Raw] = {}
    base_types: dict[str, msgspec.Raw] = {}


@dataclass(frozen=True, slots=True)
class IsfFile:
    """This is an ISF file of a Linux kernel that was read.

    Args:
        path: of the file.
        link_start: where the kernel's image starts, by its ``_text``.
        banner: of the kernel, without newline and NUL; empty where the file does not tell.
        address_bits: to which all addresses were cut; 64 for none.
        content: its symbols and types as they stand there.
    """

    path: Path
    link_start: Va
    banner: bytes
    address_bits: int
    content: _File

    @classmethod
    def read(cls, path: Path) -> Self:
        """This reads the file of a kernel, compressed or not.

        Raises:
            UsageError: it cannot be read.
            CorruptTable: it is damaged, or is no ISF file of a Linux kernel.
        """
        return cls._of_kernel(path, _content(path))

    @classmethod
    def read_any(cls, path: Path) -> Self:
        """This reads a file, which may also be of a module; :attr:`link_start` is 0 then.

        Raises:
            UsageError: it cannot be read.
            CorruptTable: it is damaged, or is no ISF file.
        """
        content = _content(path)
        if "_text" in content.symbols and "linux_banner" in content.symbols:
            return cls._of_kernel(path, content)
        return cls(path, Va(0), b"", _ADDRESS_BITS, content)

    @classmethod
    def _of_kernel(cls, path: Path, content: _File) -> Self:
        text, banner = (content.symbols.get(name) for name in ("_text", "linux_banner"))
        if text is None or banner is None:
            raise CorruptTable(str(path), "it has no symbols _text and linux_banner of a kernel")
        bits = (text.address & _ADDRESS_MASK).bit_length()
        link_start = _whole_address(text.address, bits)
        if link_start % PAGE_SIZE or bits < _LEAST_ADDRESS_BITS:
            raise CorruptTable(str(path), f"its kernel starts at {text.address:#x}")
        words = (banner.constant_data or b"").partition(b"\0")[0].rstrip(b"\n")
        return cls(path, link_start, words, bits, content)

    def slide(self, image_start: Va) -> int:
        """This is the distance that KASLR moved the kernel, in bytes.

        Raises:
            UsageError: no kernel of this file can lie there.
        """
        distance = image_start - self.link_start
        if distance % PAGE_SIZE:
            raise UsageError(
                f"{self.path} is not of the kernel that starts at {image_start:#x}:"
                f" it was linked for {self.link_start:#x}"
            )
        return distance

    def address(self, name: str) -> Va | None:
        """This is a symbol's address as linked, or its offset in per-CPU areas; None for none."""
        found = self.content.symbols.get(name)
        return None if found is None else _whole_address(found.address, self.address_bits)

    def user_type(self, name: str) -> _UserType | None:
        """This is a struct or union, None where there is none of the name.

        Raises:
            CorruptTable: it is not written as a struct is.
        """
        return self._decoded(self.content.user_types.get(name), name, _UserType)

    def constants(self, name: str) -> Mapping[str, int]:
        """These are the enumerators of an enumeration; none where there is none of the name.

        Raises:
            CorruptTable: it is not written as an enumeration is.
        """
        found = self._decoded(self.content.enums.get(name), name, _Enum)
        return {} if found is None else found.constants

    def _decoded(self, raw: msgspec.Raw | None, name: str, kind: type[_Decoded]) -> _Decoded | None:
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptTable(str(self.path), f"its type {name!r}: {error}") from error


class IsfSymbols:
    """This answers from an ISF file. It implements :class:`qvmi.symbols.layout.Symbols`.

    Args:
        file: of the kernel that runs.
        slide: the distance that KASLR moved the kernel, in bytes.
    """

    def __init__(self, file: IsfFile, *, slide: int) -> None:
        self.file = file
        self.slide = slide
        self._types: dict[str, _UserType | None] = {}
        self._nested: dict[str, dict[str, Field]] = {}

    def find(self, name: str) -> Va | None:
        """This is a symbol's address, None where the file has no such symbol."""
        found = self.file.address(name)
        return None if found is None else self._moved(found)

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This is the first of several members that a struct has.

        Raises:
            CorruptTable: the file contradicts itself.
        """
        struct = self._type(type_name)
        if struct is None:
            return None
        for name in names:
            if name in struct.fields and not _is_anonymous(name, struct.fields[name]):
                return _field(name, struct.fields[name], 0)
        nested = self._nested_fields(type_name, struct)
        return next((nested[name] for name in names if name in nested), None)

    def size_of(self, type_name: str) -> int | None:
        """This is the size of a struct or union in bytes, None where it is unknown.

        Raises:
            CorruptTable: the file contradicts itself.
        """
        struct = self._type(type_name)
        return None if struct is None else struct.size

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        """This is the value of an enumerator; None where the enumeration is unknown or lacks it.

        Raises:
            CorruptTable: the file contradicts itself.
        """
        return self.file.constants(type_name).get(name)

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the kernel's symbol at or before an address, None outside of the kernel.

        Its type is ``?``, for the file has none.
        """
        addresses, names = self._by_address
        position = bisect_right(addresses, va)
        if not position or va > addresses[-1]:
            return None
        found = addresses[position - 1]
        return NearestSymbol(names[found], found, _UNKNOWN_TYPE, "")

    def addresses(self) -> Iterator[tuple[str, Va]]:
        """This iterates the names of the kernel's own addresses, in the order of the file."""
        for name in self.file.content.symbols:
            address = self.file.address(name)
            if address is not None and address >= _KERNEL_HALF:
                yield name, self._moved(address)

    @cached_property
    def _by_address(self) -> tuple[Sequence[Va], Mapping[Va, str]]:
        """All addresses of the kernel in rising order, and the first symbol at each."""
        names: dict[Va, str] = {}
        for name, address in self.addresses():
            names.setdefault(address, name)
        return sorted(names), names

    def _moved(self, address: Va) -> Va:
        if address < _KERNEL_HALF:
            return address
        return Va((address + self.slide) & _ADDRESS_MASK)

    def _type(self, name: str) -> _UserType | None:
        if name not in self._types:
            self._types[name] = self.file.user_type(name)
        return self._types[name]

    def _nested_fields(self, type_name: str, struct: _UserType) -> Mapping[str, Field]:
        """These are all members, those of anonymous ones as if they were the struct's own."""
        if type_name not in self._nested:
            members = list(islice(self._walk(struct, 0, 0), _MAX_MEMBERS))
            if len(members) == _MAX_MEMBERS:
                problem = f"its type {type_name!r} has {_MAX_MEMBERS} members and more"
                raise CorruptTable(str(self.file.path), problem)
            self._nested[type_name] = {one.name: one for one in members if one is not None}
        return self._nested[type_name]

    def _walk(self, struct: _UserType, base: int, depth: int) -> Iterator[Field | None]:
        """This iterates all members; None for anonymous ones, so that they count too."""
        for name, member in struct.fields.items():
            if not _is_anonymous(name, member):
                yield _field(name, member, base)
                continue
            yield None
            inner = self._type(member.type.name) if member.type else None
            if inner is not None:
                if depth > _MAX_DEPTH:
                    raise CorruptTable(str(self.file.path), "its types nest too deep")
                yield from self._walk(inner, base + member.offset, depth + 1)


def _content(path: Path) -> _File:
    """This reads a file as far as it is the same for all kinds of them."""
    try:
        with open_regular(path) as file:
            data = decompress(file, str(path), limit=_MAX_FILE)
    except OSError as error:
        raise UsageError(f"cannot read the ISF file {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptTable(str(path), f"it is no ISF file: {error}") from error


def _whole_address(address: int, bits: int) -> Va:
    """This puts back the upper bits of an address that was cut to so many."""
    address &= _ADDRESS_MASK
    if _LEAST_ADDRESS_BITS <= bits < _ADDRESS_BITS and address >> (bits - 1) == 1:
        address |= _ADDRESS_MASK >> bits << bits
    return Va(address)


def _is_anonymous(name: str, member: _Member) -> bool:
    return member.anonymous or name.startswith(_ANONYMOUS)


def _field(name: str, member: _Member, base: int) -> Field:
    if member.type is None or member.type.kind != "bitfield":
        return Field(name, base + member.offset)
    at = 8 * (base + member.offset) + member.type.bit_position
    return Field(name, at // 8, at % 8, member.type.bit_length)
