"""Functions that see every packet: the hooks of netfilter, of each network namespace.

References: Linux include/linux/netfilter.h (``struct nf_hook_entries``, ``MAX_HOOK_COUNT``),
include/net/netns/netfilter.h; include/net/protocol.h (``inet_protos``), net/ipv4/af_inet.c.
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hooks.hook_places import MAX_CHAIN, HookPlaces
from qvmi.semantics.linux.net.net_namespace import NetNamespaces
from qvmi.symbols.layout import Symbols, field_offset, struct_size

__all__ = ["netfilter_hooks", "protocol_hooks"]

_INET: Final = ("PRE_ROUTING", "LOCAL_IN", "FORWARD", "LOCAL_OUT", "POST_ROUTING")
_FAMILIES: Final = {
    "hooks_ipv4": _INET,
    "hooks_ipv6": _INET,
    "hooks_arp": ("IN", "OUT", "FORWARD"),
    "hooks_bridge": _INET,
}
_PROTOCOLS: Final = 256
_POINTER: Final = Struct("<Q")
_COUNT: Final = Struct("<H")
_STRUCTURE: Final = "nf_hook_entries"


def netfilter_hooks(space: AddressSpace, symbols: Symbols, places: HookPlaces) -> None:
    """This adds the hooks of all network namespaces.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    try:
        walk = NetNamespaces(space, symbols).addresses()
    except WalkFailed as error:
        places.gap(error.structure, None, error.problem)
        return
    places.gaps += walk.gaps
    base = field_offset(symbols, "net", "nf")
    read = _Entries(space, symbols)
    for family, hooks in _FAMILIES.items():
        found = symbols.find_field("netns_nf", (family,))
        if found is None:
            continue
        for net in walk.rows.values():
            for number, hook in enumerate(hooks):
                at = net + base + found.offset + number * _POINTER.size
                read.add(at, f"{family} {hook}", places)


class _Entries:
    """This reads ``struct nf_hook_entries``."""

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._hooks = field_offset(symbols, _STRUCTURE, "hooks")
        self._function = field_offset(symbols, "nf_hook_entry", "hook")
        self._size = struct_size(symbols, "nf_hook_entry")
        if self._function + _POINTER.size > self._size:
            raise LayoutNotFound("nf_hook_entry", "hook")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_count = space.unpacker(_COUNT)

    def add(self, at: int, entry: str, places: HookPlaces) -> None:
        """This adds the functions of the hook that a pointer leads to."""
        if places.is_full:
            return
        try:
            entries = self._read_pointer(at)[0]
            if not entries:
                return
            count = self._read_count(entries)[0]
            if count > MAX_CHAIN:
                places.gap(_STRUCTURE, entries, f"{count} hooks at {entry}")
                return
            data = self._space.read(Va(entries + self._hooks), count * self._size)
        except MemoryFault as fault:
            places.gap(_STRUCTURE, at, str(fault))
            return
        for number in range(count):
            where = number * self._size + self._function
            target = _POINTER.unpack_from(data, where)[0]
            places.add("netfilter", f"{entry} {number}", entries + self._hooks + where, target)


def protocol_hooks(space: AddressSpace, symbols: Symbols, places: HookPlaces) -> None:
    """This adds the functions that take in the packets of each protocol over IP.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    handler = field_offset(symbols, "net_protocol", "handler")
    for table in ("inet_protos", "inet6_protos"):
        start = symbols.find(table)
        if start is None:
            continue
        try:
            rows = space.read(start, _PROTOCOLS * _POINTER.size)
            for number, (protocol,) in enumerate(_POINTER.iter_unpack(rows)):
                if protocol:
                    target = _POINTER.unpack(space.read(Va(protocol + handler), _POINTER.size))[0]
                    places.add(table, str(number), protocol + handler, target)
        except MemoryFault as fault:
            places.gap(table, start, str(fault))
