"""Functions that see every packet: the hooks of netfilter, of each network namespace.

References: Linux include/linux/netfilter.h (``struct nf_hook_entries``, ``MAX_HOOK_COUNT``),
include/net/netns/netfilter.h; include/net/protocol.h (``inet_protos``), net/ipv4/af_inet.c.
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hook_places import MAX_CHAIN, HookPlaces
from qvmi.semantics.linux.net_namespace import NetNamespaces
from qvmi.symbols.layout import Symbols, field_offset

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
    for family, hooks in _FAMILIES.items():
        found = symbols.find_field("netns_nf", (family,))
        if found is None:
            continue
        for net in walk.rows.values():
            if places.is_full:
                return
            for number, hook in enumerate(hooks):
                at = net + base + found.offset + number * _POINTER.size
                _entries(space, symbols, at, f"{family} {hook}", places)


def _entries(
    space: AddressSpace, symbols: Symbols, at: int, entry: str, places: HookPlaces
) -> None:
    """This adds the functions of one hook."""
    hooks = field_offset(symbols, _STRUCTURE, "hooks")
    function = field_offset(symbols, "nf_hook_entry", "hook")
    size = symbols.size_of("nf_hook_entry")
    if not size:
        raise LayoutNotFound("nf_hook_entry")
    try:
        entries = _POINTER.unpack(space.read(Va(at), _POINTER.size))[0]
        if not entries:
            return
        count = _COUNT.unpack(space.read(Va(entries), _COUNT.size))[0]
        if count > MAX_CHAIN:
            places.gap(_STRUCTURE, entries, f"{count} hooks at {entry}")
            return
        data = space.read(Va(entries + hooks), count * size)
    except MemoryFault as fault:
        places.gap(_STRUCTURE, at, str(fault))
        return
    for number in range(count):
        where = number * size + function
        target = _POINTER.unpack_from(data, where)[0]
        places.add("netfilter", f"{entry} {number}", entries + hooks + where, target)


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
