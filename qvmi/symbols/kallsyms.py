"""The kernel's own symbol table as it lies in memory: kallsyms, decoded no further than asked.

References: Linux scripts/kallsyms.c (``write_src``) and kernel/kallsyms.c
(``kallsyms_expand_symbol``, ``kallsyms_lookup_names``, ``kallsyms_sym_address``).
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.witness import Piece

__all__ = [
    "MARKER_STEP",
    "SEQ_SIZE",
    "TOKENS",
    "Addressing",
    "Kallsyms",
    "KallsymsTables",
    "KernelSymbol",
    "ReadVirtual",
    "names_end",
]

MAX_SYMBOLS: Final = 1_000_000
"""More symbols than any kernel has (7.x: under 200,000): bounds what a lying guest costs."""

TOKENS: Final = 256
MARKER_STEP: Final = 256
"""``kallsyms_markers`` holds the offset of every 256th name."""

MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``, the longest name in characters; a token stands for at least one."""

MAX_NAMES_SIZE: Final = 32 << 20
"""Bytes; the compressed names of a distribution's kernel take 1 to 3 MiB."""

SEQ_SIZE: Final = 3
"""``kallsyms_seqs_of_names`` holds 24-bit numbers, the highest byte first."""

_MARKER: Final = Struct("<I")
_ADDRESS_MASK: Final = (1 << 64) - 1
_KERNEL_HALF: Final = 1 << 63
"""Below it there are no kernel addresses; symbols there are offsets into per-CPU areas."""

ReadVirtual = Callable[[Va, int], bytes]
"""Reads exactly so many bytes at a kernel virtual address, or raises MemoryFault."""


class Addressing(StrEnum):
    """This is how ``kallsyms_offsets`` gives an address."""

    ABSOLUTE_PERCPU = "absolute-percpu"
    """From zero on the address itself; below zero ``relative_base - 1 - offset``."""
    RELATIVE = "relative"
    """``relative_base`` plus an unsigned offset."""
    PLACE_RELATIVE = "place-relative"
    """A signed offset from the table entry's own address (Linux 7.x)."""


@dataclass(frozen=True, slots=True)
class KallsymsTables:
    """This is where the tables of one kernel lie, and how they are to be read.

    Args:
        names: address of ``kallsyms_names``.
        count: ``kallsyms_num_syms``.
        markers: address of ``kallsyms_markers``.
        token_table: address of ``kallsyms_token_table``.
        token_index: address of ``kallsyms_token_index``.
        offsets: address of ``kallsyms_offsets``.
        addressing: how an offset becomes an address.
        relative_base: value (not address) of ``kallsyms_relative_base``; 0 where there is none.
        seqs_of_names: address of ``kallsyms_seqs_of_names``, 0 where there is none (before 6.2).
        long_names: whether a length byte with bit 7 set has a second byte (6.2 and later).
    """

    names: Va
    count: int
    markers: Va
    token_table: Va
    token_index: Va
    offsets: Va
    addressing: Addressing
    relative_base: int
    seqs_of_names: Va
    long_names: bool

    def __post_init__(self) -> None:
        if not 0 < self.count <= MAX_SYMBOLS:
            raise CorruptTable("kallsyms_num_syms", f"{self.count} is no number of symbols")


@dataclass(frozen=True, slots=True)
class KernelSymbol:
    """This is one symbol, as a line of ``/proc/kallsyms`` shows it.

    Args:
        address: as of now, KASLR included; small numbers are offsets into per-CPU areas.
        type: the letter that ``nm`` shows.
        name: always ASCII in a kernel that tells the truth.
    """

    address: Va
    type: str
    name: str


class Kallsyms:
    """This answers questions about the symbols of the running kernel.

    It copies the tables once (about 3 MiB). A single name is looked up in the kernel's own index
    of names where there is one, else all names are decoded at the first question.

    Args:
        read: reads the kernel's virtual memory.
        tables: where the tables lie.

    Raises:
        CorruptTable: the tables contradict themselves.
        MemoryFault: they cannot be read.
    """

    def __init__(self, read: ReadVirtual, tables: KallsymsTables) -> None:
        self.tables = tables
        count = tables.count
        marker_count = -(-count // MARKER_STEP)
        self._tokens, self._token_pieces = _read_tokens(read, tables)
        self._markers = Struct(f"<{marker_count}I").unpack(read(tables.markers, 4 * marker_count))
        self._names = _read_names(read, tables, last_marker=self._markers[-1])
        code = "I" if tables.addressing is Addressing.RELATIVE else "i"
        self._offsets = array(code, read(tables.offsets, 4 * count))
        self._seqs = read(tables.seqs_of_names, SEQ_SIZE * count) if tables.seqs_of_names else b""
        self._sorted_names: dict[int, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return self.tables.count

    def address_at(self, index: int) -> Va:
        """This is the address of the symbol with this number in the table's order."""
        offset = self._offsets[index]
        tables = self.tables
        if tables.addressing is Addressing.PLACE_RELATIVE:
            return Va((tables.offsets + 4 * index + offset) & _ADDRESS_MASK)
        if tables.addressing is Addressing.RELATIVE:
            return Va((tables.relative_base + offset) & _ADDRESS_MASK)
        if offset >= 0:
            return Va(offset)
        return Va((tables.relative_base - 1 - offset) & _ADDRESS_MASK)

    def at(self, index: int) -> KernelSymbol:
        """This is the symbol with this number in the table's order, which is by address."""
        text = self._text_at(index).decode("ascii", "backslashreplace")
        return KernelSymbol(self.address_at(index), text[:1], text[1:])

    def find(self, name: str) -> Va | None:
        """This looks one name up; None where the kernel has no such symbol.

        Of several symbols of one name it is the one at the lowest address.

        Raises:
            CorruptTable: the name tables contradict themselves.
        """
        index = self.index_of(name)
        return None if index is None else self.address_at(index)

    def index_of(self, name: str) -> int | None:
        """This is the number of the symbol that :meth:`find` finds, None where there is none.

        Raises:
            CorruptTable: the name tables contradict themselves.
        """
        wanted = name.encode("utf-8", "backslashreplace")
        return self._search_index(wanted) if self._seqs else self._by_name.get(wanted)

    def witness(self, index: int) -> tuple[Piece, ...]:
        """These are the bytes that make the name and the address of the symbol with this number."""
        tables, block = self.tables, index // MARKER_STEP
        start = self._markers[block]
        within = index % MARKER_STEP + 1
        end = names_end(self._names, start, within, long_names=tables.long_names)
        return (
            *self._token_pieces,
            (Va(tables.markers + 4 * block), _MARKER.pack(start)),
            (Va(tables.names + start), self._names[start:end]),
            (Va(tables.offsets + 4 * index), self._offsets[index : index + 1].tobytes()),
        )

    def name_at(self, index: int) -> bytes:
        """This is the bare name of the symbol with this number.

        Raises:
            CorruptTable: the name lies outside of the table.
        """
        return self._text_at(index)[1:]

    def nearest(self, va: Va) -> KernelSymbol | None:
        """This is the first of those at the last address up to this one.

        Returns:
            None in front of the kernel's first symbol and behind its last, which marks its end.
        """
        position = bisect_right(self._addresses, va)
        if not position or va > self._addresses[-1]:
            return None
        first_of_address = bisect_left(self._addresses, self._addresses[position - 1])
        return self.at(self._index_by_address[first_of_address])

    def end_of(self, va: Va) -> Va:
        """This is the next address of a symbol behind an address; behind the last, the address itself."""
        position = bisect_right(self._addresses, va)
        return Va(self._addresses[position]) if position < len(self._addresses) else va

    def symbols(self) -> Iterator[KernelSymbol]:
        """This iterates all symbols in the order of ``/proc/kallsyms``.

        Raises:
            CorruptTable: the names do not lie where the markers say, or are too long.
        """
        for index, text in enumerate(self._texts):
            decoded = text.decode("ascii", "backslashreplace")
            yield KernelSymbol(self.address_at(index), decoded[:1], decoded[1:])

    def addresses(self) -> dict[str, Va]:
        """This is the address of every name, in the order of ``/proc/kallsyms``.

        Of several symbols of one name it is the first, as for :meth:`find`.

        Raises:
            CorruptTable: the names do not lie where the markers say, or are too long.
        """
        found: dict[str, Va] = {}
        for index, text in enumerate(self._texts):
            found.setdefault(text[1:].decode("ascii", "backslashreplace"), self.address_at(index))
        return found

    @cached_property
    def _texts(self) -> list[bytes]:
        """All names decoded, each with its type letter in front."""
        texts: list[bytes] = []
        offset = 0
        for block, marker in enumerate(self._markers):
            if offset != marker:
                problem = f"name {len(texts)} lies at {offset}, not at {marker}"
                raise CorruptTable("kallsyms_markers", problem)
            offset = self._decode(offset, min(MARKER_STEP, len(self) - MARKER_STEP * block), texts)
        return texts

    def _decode(self, offset: int, count: int, texts: list[bytes]) -> int:
        """This appends so many names from an offset on, and returns the offset behind them."""
        names, long_names = self._names, self.tables.long_names
        token, join, total = self._tokens.__getitem__, b"".join, 0
        try:
            for _ in range(count):
                length = names[offset]
                offset += 1
                if length & 0x80 and long_names:
                    length = (length & 0x7F) | names[offset] << 7
                    offset += 1
                if length > MAX_NAME:
                    raise CorruptTable("kallsyms_names", f"name {len(texts)}: {length} tokens")
                text = join(map(token, names[offset : offset + length]))
                texts.append(text)
                total += len(text)
                offset += length
        except IndexError as error:
            raise CorruptTable("kallsyms_names", f"ends within name {len(texts)}") from error
        if offset > len(names) or total > count * MAX_NAME:
            problem = f"names up to {len(texts)} end at {offset} and have {total} characters"
            raise CorruptTable("kallsyms_names", problem)
        return offset

    @cached_property
    def _by_name(self) -> dict[bytes, int]:
        """The first index of each name."""
        found: dict[bytes, int] = {}
        for index, text in enumerate(self._texts):
            found.setdefault(text[1:], index)
        return found

    @cached_property
    def _index_by_address(self) -> "array[int]":
        """The numbers of symbols at kernel addresses, by rising address."""
        addresses = array("Q", map(self.address_at, range(self.tables.count)))
        found = array("I", (one for one, at in enumerate(addresses) if at >= _KERNEL_HALF))
        if all(addresses[one] <= addresses[after] for one, after in pairwise(found)):
            return found  # as kernels have them; a list to sort them in takes 15 MiB
        return array("I", sorted(found, key=addresses.__getitem__))

    @cached_property
    def _addresses(self) -> "array[int]":
        return array("Q", map(self.address_at, self._index_by_address))

    def _text_at(self, index: int) -> bytes:
        """This decodes one name with its type letter, skipping at most 255 names before it."""
        found: list[bytes] = []
        within = index % MARKER_STEP
        try:
            marker = self._markers[index // MARKER_STEP]
            start = names_end(self._names, marker, within, long_names=self.tables.long_names)
        except IndexError as error:
            raise CorruptTable("kallsyms_names", f"name {index} lies outside") from error
        self._decode(start, 1, found)
        return found[0]

    def _sorted_name(self, position: int) -> tuple[bytes, int]:
        """This is the name at a place of the alphabetical index, and its symbol's number.

        It is remembered: all searches begin with the same places.
        """
        known = self._sorted_names.get(position)
        if known is not None:
            return known
        at = SEQ_SIZE * position
        index = int.from_bytes(self._seqs[at : at + SEQ_SIZE], "big")
        if index >= self.tables.count:
            raise CorruptTable("kallsyms_seqs_of_names", f"entry {position} is {index}")
        found = self._sorted_names[position] = self._text_at(index)[1:], index
        return found

    def _search_index(self, wanted: bytes) -> int | None:
        """This searches the alphabetical index; the names compare as bytes, as in the kernel."""
        low, high = 0, self.tables.count
        while low < high:
            middle = (low + high) // 2
            if self._sorted_name(middle)[0] < wanted:
                low = middle + 1
            else:
                high = middle
        if low == self.tables.count:
            return None
        name, index = self._sorted_name(low)
        return index if name == wanted else None


def names_end(names: bytes, start: int, count: int, *, long_names: bool) -> int:
    """This is the offset behind ``count`` compressed names.

    Raises:
        IndexError: the bytes end before.
    """
    offset = start
    for _ in range(count):
        length = names[offset]
        if length & 0x80 and long_names:
            offset += 2 + ((length & 0x7F) | names[offset + 1] << 7)
        else:
            offset += 1 + length
    return offset


def _read_tokens(
    read: ReadVirtual, tables: KallsymsTables
) -> tuple[tuple[bytes, ...], tuple[Piece, Piece]]:
    """This reads the 256 strings that the bytes of a compressed name stand for, and whence."""
    offsets = read(tables.token_index, 2 * TOKENS)
    index: tuple[int, ...] = Struct(f"<{TOKENS}H").unpack(offsets)
    if sorted(index) != list(index):
        raise CorruptTable("kallsyms_token_index", "its offsets do not rise")
    table = read(tables.token_table, index[-1] + MAX_NAME)
    tokens = []
    for number, offset in enumerate(index):
        end = table.find(0, offset)
        if not 0 <= end - offset <= MAX_NAME:
            raise CorruptTable("kallsyms_token_table", f"token {number} has no end")
        tokens.append(table[offset:end])
    used = table[: index[-1] + len(tokens[-1]) + 1]
    return tuple(tokens), ((tables.token_index, offsets), (tables.token_table, used))


def _read_names(read: ReadVirtual, tables: KallsymsTables, *, last_marker: int) -> bytes:
    """This reads the compressed names; what lies behind them in memory bounds their size."""
    size = last_marker + ((tables.count - 1) % MARKER_STEP + 1) * (MAX_NAME + 2)
    if tables.markers > tables.names:
        size = min(size, tables.markers - tables.names)
    if size > MAX_NAMES_SIZE:
        raise CorruptTable("kallsyms_markers", f"the last marker is {last_marker}")
    try:
        return read(tables.names, size)
    except MemoryFault as fault:
        raise CorruptTable("kallsyms_names", f"{size} bytes are not all mapped") from fault
