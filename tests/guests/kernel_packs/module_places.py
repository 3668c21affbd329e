"""Where the kernel's structures have the module that tests hide."""

import struct
from typing import Final

from tests.guests.kernel_packs.tampered_kernel import HIDDEN_MODULE, Tampered

__all__ = ["ModulePlaces"]

_NODES: Final = 8
"""A module has at most seven parts, each with a node in the tree of addresses."""


class ModulePlaces:
    """This is the module, whose struct is where the guest's /proc/kallsyms has ``__this_module``."""

    def __init__(self, kernel: Tampered) -> None:
        self.kernel = kernel
        self.address = kernel.symbols[f"{HIDDEN_MODULE}:__this_module"]
        other = kernel.symbols["veth:__this_module"]
        self.other = other
        self.list = self.address + kernel.offset("module", "list")
        self.bugs = self.address + kernel.offset("module", "bug_list")
        kobject = self.address + kernel.offset("module", "mkobj")
        kobject += kernel.offset("module_kobject", "kobj")
        self.itself = self.address + kernel.offset("module", "mkobj")
        self.itself += kernel.offset("module_kobject", "mod")
        self.sysfs = kobject + kernel.offset("kobject", "entry")

    def owned_by(self) -> list[int]:
        """These are the places in it at which it says that a part is its own: ``mod_tree_node.mod``."""
        kernel, own = self.kernel, struct.pack("<Q", self.address)
        size = kernel.linux.kernel.symbols.size_of("module") or 0
        content = kernel.read(self.address, size)
        found = [at for at in range(0, size - 8, 8) if content[at : at + 8] == own]
        places = [self.address + at for at in found if self.address + at != self.itself]
        assert 1 <= len(places) <= _NODES
        return places
