"""Functions of security modules that the kernel asks: the hooks of LSM.

References: Linux include/linux/lsm_hooks.h (``struct security_hook_list``, ``struct security_hook_heads``;
``struct lsm_static_call`` and ``static_calls_table`` since 6.12), security/security.c.
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hooks.hook_places import HookPlaces
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset, struct_size

__all__ = ["security_hooks"]

_POINTER: Final = Struct("<Q")
_MAX_SIZE: Final = 1 << 20
"""Bytes of a table; that of 7.x has 95 KiB."""


def security_hooks(space: AddressSpace, symbols: Symbols, places: HookPlaces) -> None:
    """This adds the functions of all security modules.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    heads = symbols.find("security_hook_heads")
    table = address(symbols, "static_calls_table") if heads is None else heads
    try:
        (_of_calls if heads is None else _of_heads)(space, symbols, table, places)
    except MemoryFault as fault:
        places.gap("security_hook_list", table, str(fault))


def _of_heads(space: AddressSpace, symbols: Symbols, heads: Va, places: HookPlaces) -> None:
    """This follows a chain for each question."""
    hook = field_offset(symbols, "security_hook_list", "hook")
    following = field_offset(symbols, "security_hook_list", "list")
    read = compile_reader(space, (following, "Q"), (hook, "Q"))
    data = space.read(heads, _size(symbols, "security_hook_heads"))
    for number, (first,) in enumerate(_POINTER.iter_unpack(data)):
        node = first - following if first else 0
        places.follow("security_hook_heads", str(number), node, read, hook)


def _of_calls(space: AddressSpace, symbols: Symbols, table: Va, places: HookPlaces) -> None:
    """This reads a static call for each question and security module."""
    stride = struct_size(symbols, "lsm_static_call")
    whole = _size(symbols, "lsm_static_calls_table")
    key_at = field_offset(symbols, "lsm_static_call", "key")
    hl_at = field_offset(symbols, "lsm_static_call", "hl")
    hook = field_offset(symbols, "security_hook_list", "hook")
    function = field_offset(symbols, "static_call_key", "func")
    if not hl_at < stride:
        raise LayoutNotFound("lsm_static_call")
    read = space.unpacker(_POINTER)
    data = space.read(table, whole // stride * stride)
    for at in range(0, len(data), stride):
        used = _POINTER.unpack_from(data, at + hl_at)[0]
        if not used:
            continue
        entry, key = str(at // stride), _POINTER.unpack_from(data, at + key_at)[0]
        places.add("security_hook_list", entry, used + hook, read(used + hook)[0])
        places.add("static_calls_table", entry, key + function, read(key + function)[0])


def _size(symbols: Symbols, name: str) -> int:
    size = struct_size(symbols, name)
    if size > _MAX_SIZE or size % _POINTER.size:
        raise LayoutNotFound(name)
    return size
