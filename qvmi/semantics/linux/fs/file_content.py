"""The content of a file, as far as its pages are in memory.

References: Linux mm/filemap.c (``filemap_get_entry``: a folio counts once it is still of this file at this
place), mm/shmem.c (``shmem_file_read_iter``: of a file that is in memory alone, a missing page is zeros; a
swapped one is an entry that holds a number), mm/workingset.c (elsewhere such an entry is a shadow).
"""

from collections.abc import Callable
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.inode import device_text
from qvmi.semantics.linux.fs.page_cache import CachedFiles
from qvmi.semantics.linux.fs.super_block import FileSystem, KnownInode
from qvmi.semantics.linux.pages.memmap import MemMap, PageUse
from qvmi.semantics.linux.pages.page_flags import Use
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.xarray import Entry
from qvmi.semantics.rows.cached_files import CachedFile, FilePiece, MissingRange

__all__ = ["NEVER_READ", "FileContents", "Write", "folio_of"]

Write = Callable[[int, bytes], None]
"""Takes an offset in the file, and the bytes there."""

_STRUCTURE: Final = "inode.i_data"
_RETRIES: Final = 4
"""Looks at a page that is taken from the file and given back each time."""
_CHUNK: Final = 1 << 20
"""Bytes read at once of a large folio."""
_NOT_CACHED: Final = "not in memory"
_SWAPPED: Final = "swapped out"
_NOT_READ: Final = "not, or not wholly, read from the device"
NEVER_READ: Final = frozenset({_NOT_CACHED, _NOT_READ})
"""Why parts of a file are missing that were not yet read from its disk; all other reasons are problems."""
_BLOCK_DEVICE: Final = 0o060000
_FORMAT: Final = 0o170000


class FileContents:
    """This reads the files of one kernel out of its page cache.

    Args:
        space: the kernel's address space.
        files: knows the inodes.
        memmap: tells of pages.
    """

    def __init__(self, space: AddressSpace, files: CachedFiles, memmap: MemMap) -> None:
        self._memory = space.memory
        self._files = files
        self._memmap = memmap

    def recover(
        self, file: CachedFile, write: Write, *, limit: int | None = None
    ) -> ListWalk[MissingRange]:
        """This writes what is in memory of a file, and lists what is not.

        Args:
            file: which one.
            write: called with each run of bytes, in rising order; what it is never called with is
                missing, or zeros where the file is in memory alone.
            limit: how many bytes from its beginning on, at least; None for all.

        Raises:
            WalkFailed: the file is gone, or its pages cannot be read in this way.
        """
        inode, system = self._there(file)
        if system.huge_pages:
            raise WalkFailed(_STRUCTURE, "files of hugetlbfs are not read")
        if limit is not None:
            inode = inode._replace(size=min(inode.size, limit))
        found = _Recovery(self._memory.read, self._files, self._memmap, inode, system).run(write)
        self._there(file)  # what has gone meanwhile would be taken for zeros
        return found

    def beginning(
        self, file: CachedFile, limit: int
    ) -> tuple[list[FilePiece], list[MissingRange], int]:
        """This gives what is in memory of a file's first bytes, what is not, and how often it was read again.

        Raises:
            WalkFailed: as :meth:`recover`.
        """
        pieces: list[FilePiece] = []

        def keep(start: int, data: bytes) -> None:
            pieces.append(FilePiece(start, data[: limit - start]))

        found = self.recover(file, keep, limit=limit)
        return [one for one in pieces if one.data], list(found.rows.values()), found.retries

    def _there(self, file: CachedFile) -> tuple[KnownInode, FileSystem]:
        """This is the inode of a file.

        Raises:
            WalkFailed: it is gone, and perhaps another one lies there.
        """
        supers = self._files.super_blocks
        try:
            inode = supers.inode(file.address)
            system = supers.file_system(inode.super_block)
        except (MemoryFault, Implausible) as error:
            raise WalkFailed(_STRUCTURE, f"the file is gone: {error}") from error
        is_device = inode.mode & _FORMAT == _BLOCK_DEVICE
        device = device_text(inode.device if is_device else system.device)
        if (inode.number, device) != (file.inode, file.device):
            raise WalkFailed(_STRUCTURE, "the file is gone: another one lies there now")
        return inode, system


class _Recovery:
    """This is the reading of one file in progress.

    Attributes:
        reached: the first byte that nothing is known of yet.
    """

    def __init__(
        self,
        read: Callable[[Pa, int], bytes],
        files: CachedFiles,
        memmap: MemMap,
        inode: KnownInode,
        system: FileSystem,
    ) -> None:
        self._read = read
        self._array = files.array
        self._pages = inode.address + files.pages
        self._mapping = inode.address + files.super_blocks.pages
        self._memmap = memmap
        self._size = max(inode.size, 0)
        self._system = system
        self._effort = Effort()
        self._missing: list[MissingRange] = []
        self.reached = 0

    def run(self, write: Write) -> ListWalk[MissingRange]:
        """This reads from the first page to the last."""
        try:
            self._run(write)
        except Spent as spent:
            self._lack(self._size, str(spent))
        self._lack(self._size, "" if self._system.in_memory else _NOT_CACHED)
        rows = dict(enumerate(self._missing))
        return ListWalk(rows, retries=self._effort.retries)

    def _run(self, write: Write) -> None:
        index: int | None = 0
        while index is not None and self.reached < self._size:
            try:
                leaf = self._array.leaf(self._pages, index, self._effort)
            except (MemoryFault, Implausible) as error:
                self._lack(self._size, f"its pages cannot be found: {error}")
                return
            for entry in leaf.entries:
                self._take(entry, write)
            index = leaf.following

    def _take(self, entry: Entry, write: Write) -> None:
        """This reads what one entry stands for; looks again where it stands for something else now."""
        why = ""
        for _ in range(_RETRIES):
            start = max(entry.first * PAGE_SIZE, self.reached)
            end = min((entry.first + entry.size) * PAGE_SIZE, self._size)
            if start >= end:
                return
            self._lack(start, "" if self._system.in_memory else _NOT_CACHED)
            if entry.is_value:
                self._lack(end, _SWAPPED if self._system.in_memory else _NOT_CACHED)
                return
            try:
                if self._copy(entry, start, end, write):
                    return
                why = "it changes faster than it can be read"
            except (MemoryFault, Implausible) as error:
                why = str(error)
            self._effort.retries += 1
            now = self._at(entry.first)
            if now is None:
                return
            entry = now
        self._lack(end, why)

    def _at(self, index: int) -> Entry | None:
        """This is the entry that stands for a number now, None for none."""
        try:
            entries = self._array.leaf(self._pages, index, self._effort).entries
        except (MemoryFault, Implausible):
            return None
        return next((one for one in entries if one.first <= index < one.first + one.size), None)

    def _copy(self, entry: Entry, start: int, end: int, write: Write) -> bool:
        """This copies a range of a folio, and tells whether the folio was the file's all the time.

        Raises:
            MemoryFault: it cannot be read.
            Implausible: the entry leads to no page of this file.
        """
        page = Va(entry.value)
        its = folio_of(self._memmap, self._mapping, entry)
        if not its.flags & self._memmap.flags.uptodate:
            # Of a file in memory alone it was asked for, and never written: it reads as zeros.
            self._lack(end, "" if self._system.in_memory else _NOT_READ)
            return True
        for offset in range(start, end, _CHUNK):
            size = min(_CHUNK, end - offset)
            self._effort.spend(1)
            data = self._read(Pa(its.first + offset - its.index * PAGE_SIZE), size)
            now = self._memmap.at(page)
            if (now.use, now.mapping, now.index) != (its.use, its.mapping, its.index):
                return False
            write(offset, data)
            self.reached = offset + size
        return True

    def _lack(self, end: int, why: str) -> None:
        """This notes that nothing is had up to an offset; where there is no reason, it is zeros."""
        if end <= self.reached:
            return
        last = self._missing[-1] if self._missing else None
        if why and last is not None and (last.end, last.reason) == (self.reached, why):
            self._missing[-1] = MissingRange(last.start, end, why)
        elif why:
            self._missing.append(MissingRange(self.reached, end, why))
        self.reached = end


def folio_of(memmap: MemMap, mapping: int, entry: Entry) -> PageUse:
    """This is the folio that an entry of a file's pages leads to.

    Args:
        memmap: tells of pages.
        mapping: address of the file's ``address_space``.
        entry: one that is no value.

    Raises:
        MemoryFault: it cannot be read.
        Implausible: the entry leads to no page of this file, or to one that belongs elsewhere.
    """
    page = Va(entry.value)
    its = memmap.at(page)
    if its.use is not Use.FILE or its.mapping != mapping or its.page != page:
        raise Implausible(f"what is at {page:#x} is no page of this file")
    pages = 1 << memmap.order_of(its.page, its.flags)
    if not its.index <= entry.first <= entry.first + entry.size <= its.index + pages:
        raise Implausible(f"the page at {page:#x} belongs elsewhere in this file")
    return its
