"""A cpio archive in the form the kernel unpacks an initramfs from, made byte for byte the same each time.

References: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source ("newc").
"""

import stat
from dataclasses import dataclass, field

__all__ = ["CpioArchive"]

ALIGNMENT = 4
TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class CpioArchive:
    """This collects the files of a root file system owned by root, with no times of its own."""

    data: bytearray = field(default_factory=bytearray)
    entries: int = 0

    def folder(self, name: str, mode: int = 0o755) -> None:
        """This adds a folder; its parent must be there already."""
        self._add(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """This adds a file."""
        self._add(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        """This adds a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """This adds a character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def finish(self) -> bytes:
        """This is the whole archive."""
        self._add(TRAILER, 0, b"")
        return bytes(self.data)

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self.entries += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        # namesize, check
        fields = (
            *(self.entries, mode, 0, 0, links, 0, len(content)),
            *(0, 0, *device, len(encoded), 0),
        )
        self.data += b"070701" + b"".join(b"%08x" % number for number in fields) + encoded
        self._pad()
        self.data += content
        self._pad()

    def _pad(self) -> None:
        self.data += bytes(-len(self.data) % ALIGNMENT)
