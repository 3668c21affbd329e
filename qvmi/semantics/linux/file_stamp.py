"""What tells the inode of a cached file from another one, and an older state of it from this one.

References: Linux include/linux/fs.h (``struct inode``: ``i_mtime`` became ``__i_mtime`` in 6.7 and two
members in 6.11; ``struct super_block``: ``s_uuid``).
"""

import struct
from typing import Final
from uuid import UUID

import msgspec

from qvmi.addr import Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.cached_files import CachedFile
from qvmi.symbols.layout import field_offset

__all__ = ["FileStamp", "file_stamp"]

_UUID: Final = 16
_TIMESPEC_NSEC: Final = 8
"""Offset of the nanoseconds in ``struct timespec64``."""


class FileStamp(msgspec.Struct, frozen=True, gc=False):
    """This is what the kernel knows of a file that its disk has to agree with.

    Args:
        uuid: of its file system.
        generation: tells it from another one that had the number before.
        size: in bytes.
        modified_ns: when it was written last, in nanoseconds since the Unix epoch.
    """

    uuid: str
    generation: int
    size: int
    modified_ns: int


def file_stamp(guest: LinuxGuest, file: CachedFile) -> FileStamp:
    """This reads the stamp of a cached file.

    Raises:
        MemoryFault: its inode, or its file system, cannot be read any more.
        LayoutNotFound: the kernel's types lack what this needs.
    """
    symbols, space = guest.kernel.symbols, guest.kernel.space

    def number(at: int, form: str) -> int:
        raw = space.read(Va(at), struct.calcsize(form))
        return int(struct.unpack(f"<{form}", raw)[0])

    def member(*names: str) -> int:
        return file.address + field_offset(symbols, "inode", *names)

    seconds = member("i_mtime", "__i_mtime", "i_mtime_sec")
    apart = symbols.find_field("inode", ("i_mtime_nsec",))
    rest = seconds + _TIMESPEC_NSEC if apart is None else file.address + apart.offset
    super_block = number(member("i_sb"), "Q")
    uuid = space.read(Va(super_block + field_offset(symbols, "super_block", "s_uuid")), _UUID)
    return FileStamp(
        uuid=str(UUID(bytes=uuid)),
        generation=number(member("i_generation"), "I"),
        size=number(member("i_size"), "q"),
        modified_ns=number(seconds, "q") * 1_000_000_000 + number(rest, "I"),
    )
