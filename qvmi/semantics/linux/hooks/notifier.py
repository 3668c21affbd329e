"""Chains of functions that are told of events: keys, network addresses, panics, modules.

References: Linux include/linux/notifier.h (``struct notifier_block``, and the kinds of heads).
"""

from struct import Struct
from typing import Final

from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hooks.hook_places import HookPlaces
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["notifier_hooks"]

_POINTER: Final = Struct("<Q")
_CHAINS: Final = {
    "atomic_notifier_head": (
        *("keyboard_notifier_list", "die_chain", "panic_notifier_list", "vt_notifier_list"),
        *("inet6addr_chain", "netevent_notif_chain", "restart_handler_list"),
    ),
    "blocking_notifier_head": (
        *("reboot_notifier_list", "module_notify_list", "inetaddr_chain", "netlink_chain"),
        *("inetaddr_validator_chain", "oom_notify_list", "pm_chain_head", "crypto_chain"),
        *("fb_notifier_list", "memory_chain"),
    ),
    "raw_notifier_head": ("netdev_chain",),
}
"""Those that all users of a kind of event share, and rootkits have used or could."""


def notifier_hooks(space: AddressSpace, symbols: Symbols, places: HookPlaces) -> None:
    """This adds the functions of the chains that this kernel has.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    function = field_offset(symbols, "notifier_block", "notifier_call")
    following = field_offset(symbols, "notifier_block", "next")
    read = compile_reader(space, (following, "Q"), (function, "Q"))
    read_pointer = space.unpacker(_POINTER)
    for kind, names in _CHAINS.items():
        head = field_offset(symbols, kind, "head")
        for name in names:
            chain = symbols.find(name)
            if chain is None:
                continue
            try:
                first = read_pointer(chain + head)[0]
            except MemoryFault as fault:
                places.gap(name, chain, str(fault))
                continue
            places.follow(name, "", first, read, function)
