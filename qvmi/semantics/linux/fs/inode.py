"""Inodes: which kind of file it is, and where it is kept.

References: Linux include/linux/fs.h (``struct inode``), include/linux/kdev_t.h (``MAJOR``: the
kernel's own device numbers have 12 and 20 bits), include/uapi/linux/stat.h.
"""

from typing import Final, NamedTuple

from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Inode", "Inodes", "device_text"]

_FORMAT: Final = 0o170000
_KINDS: Final = {
    0o010000: "pipe",
    0o020000: "character device",
    0o040000: "directory",
    0o060000: "block device",
    0o100000: "file",
    0o120000: "link",
    0o140000: "socket",
}
_MINOR_BITS: Final = 20
_MAX_DEVICES: Final = 1024
"""Devices whose numbers are kept as text: a guest has some dozen."""


def device_text(number: int) -> str:
    """This writes a device number of the kernel's as ``MAJOR:MINOR``, decimal as lsblk does."""
    return f"{number >> _MINOR_BITS}:{number & ((1 << _MINOR_BITS) - 1)}"


class Inode(NamedTuple):
    """This is what is told of an inode.

    Args:
        kind: ``file``, ``directory``, ``socket`` and so on; ``anonymous`` for none of these.
        number: ``i_ino``.
        device: of the file system it is in, as ``MAJOR:MINOR``.
    """

    kind: str
    number: int
    device: str


class Inodes:
    """This reads the inodes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what inodes need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._read = compile_reader(
            space,
            (field_offset(symbols, "inode", "i_mode"), "H"),
            (field_offset(symbols, "inode", "i_sb"), "Q"),
            (field_offset(symbols, "inode", "i_ino"), "Q"),
        )
        device = field_offset(symbols, "super_block", "s_dev")
        kind = field_offset(symbols, "super_block", "s_type")
        self._read_super = compile_reader(space, (device, "I"), (kind, "Q"))
        self._devices: dict[int, str] = {}

    def at(self, inode: int) -> Inode:
        """This reads one inode.

        Raises:
            MemoryFault: it, or the file system it names, cannot be read.
        """
        mode, super_block, number = self._read(inode)
        device = self._read_super(super_block)[0]
        text = self._devices.get(device)
        if text is None:
            text = device_text(device)
            if len(self._devices) < _MAX_DEVICES:
                self._devices[device] = text
        return Inode(_KINDS.get(mode & _FORMAT, "anonymous"), number, text)
