"""Names and layouts as those who read the guest see them, wherever they come from."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, SymbolNotFound

__all__ = [
    "Field",
    "NearestSymbol",
    "Symbols",
    "address",
    "enumerator",
    "field",
    "field_offset",
    "struct_size",
]


class Field(NamedTuple):
    """This is where one member lies in a struct.

    Args:
        name: of the member, which says which of several alternatives a kernel has.
        offset: from the start of the struct, in bytes.
        bit_offset: of a bit-field within the byte at ``offset``; 0 for other members.
        bit_size: width of a bit-field; 0 for other members.
    """

    name: str
    offset: int
    bit_offset: int = 0
    bit_size: int = 0


class NearestSymbol(NamedTuple):
    """This is the symbol at or before an address.

    Args:
        name: of the symbol.
        address: of its first byte.
        type: the letter that ``nm`` shows.
        module: that defines it; empty for the kernel itself.
    """

    name: str
    address: Va
    type: str
    module: str


class Symbols(Protocol):
    """This answers names with addresses, and types with layouts, of one running kernel.

    Addresses are those of now: KASLR is already added. Every method raises CorruptTable, and no
    other error, where the tables it reads contradict themselves or cannot be read. Every
    implementation passes ``tests/contract/test_symbols.py``.
    """

    def find(self, name: str) -> Va | None:
        """This is a symbol's address, None where the kernel has no such symbol."""
        ...

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This is the first of several members that a struct has; anonymous members are searched.

        Returns:
            None where the type is unknown or has none of them.
        """
        ...

    def size_of(self, type_name: str) -> int | None:
        """This is the size of a struct or union in bytes, None where it is unknown."""
        ...

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        """This is the value of an enumerator; None where the enumeration is unknown or lacks it."""
        ...

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the symbol at or before an address, None outside of all symbols."""
        ...


def address(symbols: Symbols, name: str) -> Va:
    """This is a symbol's address.

    Raises:
        SymbolNotFound: the kernel has no such symbol.
    """
    found = symbols.find(name)
    if found is None:
        raise SymbolNotFound(name)
    return found


def field(symbols: Symbols, type_name: str, *names: str) -> Field:
    """This is the first of several alternative members that a struct has.

    Raises:
        LayoutNotFound: the type is unknown or has none of them.
    """
    found = symbols.find_field(type_name, names)
    if found is None:
        raise LayoutNotFound(type_name, "|".join(names))
    return found


def field_offset(symbols: Symbols, type_name: str, *names: str) -> int:
    """This is the offset in bytes of the first of several alternative members.

    Raises:
        LayoutNotFound: the type is unknown or has none of them.
    """
    return field(symbols, type_name, *names).offset


def struct_size(symbols: Symbols, type_name: str) -> int:
    """This is the size of a struct in bytes, which is not 0.

    Raises:
        LayoutNotFound: the type is unknown.
    """
    size = symbols.size_of(type_name)
    if not size:
        raise LayoutNotFound(type_name)
    return size


def enumerator(symbols: Symbols, type_name: str, name: str) -> int:
    """This is the value of an enumerator.

    Raises:
        LayoutNotFound: the enumeration is unknown or lacks it.
    """
    found = symbols.find_enumerator(type_name, name)
    if found is None:
        raise LayoutNotFound(type_name, name)
    return found
