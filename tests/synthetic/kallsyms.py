"""The kallsyms tables as scripts/kallsyms.c writes them, in all the orders it has used.

References: Linux scripts/kallsyms.c, ``write_src`` and ``compress_symbols``: a name is its type
letter and its characters; characters in use are their own tokens, the other codes stand for
substrings. 5.10 and 6.1 put the offsets first ("old"), 6.4 put them last ("new"), 7.x made them
relative to their own place and aligns to 4 ("place-relative").
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["BuiltKallsyms", "Line", "Order", "build_kallsyms", "plain_lines"]

Order = Literal["old", "new", "place-relative"]
_SUBSTRINGS = [b"symbol_", b"init", b"__", b"_of_", b"tsymbol_", b"000", b"kernel", b"ss", b"D__"]


@dataclass(frozen=True)
class Line:
    """A line of /proc/kallsyms."""

    address: int
    type: str
    name: str


@dataclass(frozen=True)
class BuiltKallsyms:
    """The bytes of all tables in one run, and where each of them lies.

    Attributes:
        data: the bytes, to be put at `start`.
        at: virtual address of each table, by the end of its name in the kernel.
    """

    start: int
    data: bytes
    at: dict[str, int]
    count: int
    relative_base: int


def plain_lines(count: int, *, start: int, step: int = 16) -> list[Line]:
    """Symbols of different names at rising addresses; their names rise in another order."""
    kinds = "TtDdRrBb"
    return [
        Line(start + step * n, kinds[n % 8], f"symbol_{n * 7919 % count:06d}_of_{n % 10}")
        for n in range(count)
    ]


def build_kallsyms(  # noqa: PLR0913 - each is one way in which kernels differ
    lines: Sequence[Line],
    *,
    start: int,
    order: Order = "new",
    relative_base: int | None = None,
    unsigned_offsets: bool = False,
    seqs: bool = True,
    long_names: bool = True,
) -> BuiltKallsyms:
    """This writes the tables of symbols that are already in address order.

    Args:
        lines: the symbols.
        start: virtual address of the first table.
        order: in which the tables follow each other.
        relative_base: of the offsets; None for the lowest address in the kernel half.
        unsigned_offsets: offsets are all relative (no ``CONFIG_KALLSYMS_ABSOLUTE_PERCPU``).
        seqs: write ``kallsyms_seqs_of_names``.
        long_names: names of more than 127 tokens have two bytes of length.
    """
    if relative_base is None:
        relative_base = min((one.address for one in lines if one.address >> 63), default=start)
    tokens = _tokens(lines)
    names = _compressed(lines, tokens, long_names=long_names)
    markers = [sum(map(len, names[:n])) for n in range(0, len(names), 256)]
    token_table = b"".join(token + b"\0" for token in tokens)
    index = [len(b"".join(t + b"\0" for t in tokens[:n])) for n in range(256)]
    by_name = sorted(range(len(lines)), key=lambda n: (lines[n].name.encode(), n))
    tables = {
        "num_syms": struct.pack("<I", len(lines)),
        "names": b"".join(names),
        "markers": struct.pack(f"<{len(markers)}I", *markers),
        "token_table": token_table,
        "token_index": struct.pack("<256H", *index),
        "offsets": bytes(4 * len(lines)),
        "relative_base": struct.pack("<Q", relative_base),
        "seqs_of_names": b"".join(n.to_bytes(3, "big") for n in by_name) if seqs else b"",
    }
    data, at = _laid_out(tables, order, start)
    offsets = [
        _offset(one.address, relative_base, at["offsets"] + 4 * n, order, unsigned=unsigned_offsets)
        for n, one in enumerate(lines)
    ]
    struct.pack_into(f"<{len(lines)}I", data, at["offsets"] - start, *offsets)
    base = 0 if order == "place-relative" else relative_base
    return BuiltKallsyms(start, bytes(data), at, len(lines), base)


_NAMES = ("num_syms", "names", "markers")
_TOKENS = ("token_table", "token_index")
_ORDERS: dict[Order, tuple[str, ...]] = {
    "old": ("offsets", "relative_base", *_NAMES, "seqs_of_names", *_TOKENS),
    "new": (*_NAMES, *_TOKENS, "offsets", "relative_base", "seqs_of_names"),
    "place-relative": (*_NAMES, *_TOKENS, "offsets", "seqs_of_names"),
}


def _laid_out(
    tables: dict[str, bytes], order: Order, start: int
) -> tuple[bytearray, dict[str, int]]:
    alignment = 4 if order == "place-relative" else 8
    data = bytearray()
    at: dict[str, int] = {}
    for name in _ORDERS[order]:
        if tables[name]:
            data += bytes(-(start + len(data)) % alignment)
            at[name] = start + len(data)
            data += tables[name]
    return data, at


def _offset(address: int, base: int, place: int, order: Order, *, unsigned: bool) -> int:
    if order == "place-relative":
        offset = address - place
    elif unsigned:
        offset = address - base
    elif address >> 63:
        offset = base - 1 - address
    else:
        offset = address
    return offset & 0xFFFF_FFFF


def _tokens(lines: Sequence[Line]) -> list[bytes]:
    used = {code for one in lines for code in (one.type + one.name).encode()} | set(b"0123456789")
    substrings = iter(_SUBSTRINGS)
    return [bytes([code]) if code in used else next(substrings, b"") for code in range(256)]


def _compressed(lines: Sequence[Line], tokens: list[bytes], *, long_names: bool) -> list[bytes]:
    substrings = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    pattern = re.compile(b"|".join([*map(re.escape, substrings), b"."]))
    code_of = {token: code for code, token in enumerate(tokens)}
    names = []
    for line in lines:
        parts = pattern.findall((line.type + line.name).encode())
        codes = bytes([code_of[part] for part in parts])
        two_bytes = len(codes) > 0x7F and long_names
        length = [len(codes) & 0x7F | 0x80, len(codes) >> 7] if two_bytes else [len(codes)]
        names.append(bytes(length) + codes)
    return names
