"""Which file a page of the page cache is of: from its ``address_space`` to a path.

References: Linux include/linux/fs.h (``address_space.host``, ``inode.i_dentry``), include/linux/dcache.h
(``dentry.d_u.d_alias``).
"""

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Mount
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.inode import Inodes
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["PageFiles"]

_POINTER: Final = Struct("<Q")


class PageFiles:
    """This names the files that pages of one kernel are of.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        paths: names files within their file system.
        mounts: gives all mounts.

    Attributes:
        gaps: what could not be looked at.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        *,
        paths: Paths,
        mounts: Callable[[], Iterable[Mount]],
    ) -> None:
        self._paths = paths
        self._mounts = mounts
        self._inodes = Inodes(space, symbols)
        self._read_pointer = space.unpacker(_POINTER)
        self._host = field_offset(symbols, "address_space", "host")
        self._aliases = field_offset(symbols, "inode", "i_dentry")
        self._alias = field_offset(symbols, "dentry", "d_u", "d_alias")
        self._mounted: dict[str, str] | None = None
        self._names: dict[int, str] = {}
        self.gaps: list[Gap] = []

    def name_of(self, mapping: Va, effort: Effort) -> str:
        """This is the path of a file, or what there is to say of one without; kept for each.

        Raises:
            Spent: enough was looked at.
        """
        if mapping not in self._names:
            try:
                self._names[mapping] = self._name(mapping, effort)
            except (MemoryFault, Implausible) as error:
                self.gaps.append(Gap("address_space.host", mapping, str(error)))
                self._names[mapping] = ""
        return self._names[mapping]

    def _name(self, mapping: Va, effort: Effort) -> str:
        host = self._read_pointer(mapping + self._host)[0]
        if not host:
            return ""  # swap space
        inode = self._inodes.at(host)
        alias = self._read_pointer(host + self._aliases)[0]
        if not alias:
            return f"{inode.kind} {inode.number} of {inode.device}"
        path, deleted, _ = self._paths.within(alias - self._alias, effort).partition("//deleted")
        within = f"{path} (deleted)" if deleted else path
        root = self._roots().get(inode.device)
        if root is None or not within.startswith("/"):
            return within
        return within if root == "/" else root + within

    def _roots(self) -> dict[str, str]:
        """These are the mounts of whole file systems, by device; of each the first one."""
        if self._mounted is None:
            self._mounted = {}
            for mount in self._mounts():
                if mount.root == "/":
                    self._mounted.setdefault(mount.device, mount.path)
        return self._mounted
