"""The page cache: which files have pages in memory.

References: Linux include/linux/fs.h (``struct address_space``; ``PAGECACHE_TAG_DIRTY`` is mark 0),
include/linux/pagemap.h, Documentation/filesystems/vfs.rst ("The Address Space Object"); struct dentry's
``d_alias`` links the names of an inode (include/linux/dcache.h).
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.fs.d_path import FilePath, Paths, Place
from qvmi.semantics.linux.fs.inode import device_text
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.fs.super_block import FileSystem, KnownInode, SuperBlocks
from qvmi.semantics.linux.pages.memmap import MemMap
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.structures.xarray import Entry, XArray
from qvmi.semantics.rows.cached_files import CachedFile
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["CachedFiles"]

_STRUCTURE: Final = "inode.i_data"
_MAX_GAPS: Final = 1000
_RETRIES: Final = 3
_DIRTY: Final = 1
_BLOCK_DEVICE: Final = 0o060000
_FORMAT: Final = 0o170000
_DELETED: Final = "//deleted"


class _Mounted(NamedTuple):
    """This is where a file system is seen.

    Args:
        mount: address of a ``struct vfsmount``.
        root: dentry of what of it is mounted.
    """

    mount: int
    root: int


class _Names:
    """This names inodes, by the mounts that their file systems are seen in."""

    def __init__(self, space: AddressSpace, symbols: Symbols, paths: Paths) -> None:
        self._paths = paths
        self._alias = field_offset(symbols, "dentry", "d_u", "d_alias")
        self._vfsmount = field_offset(symbols, "mount", "mnt")
        self._read_mount = compile_reader(
            space,
            (field_offset(symbols, "vfsmount", "mnt_root"), "Q"),
            (field_offset(symbols, "vfsmount", "mnt_sb"), "Q"),
        )
        self._mounted: dict[int, list[_Mounted]] = {}

    def learn(self, mounts: Iterable[Va]) -> None:
        """This takes the mounts that paths may lead through, the most usual ones first."""
        self._mounted.clear()
        for mount in mounts:
            try:
                root, super_block = self._read_mount(mount + self._vfsmount)
            except MemoryFault:
                continue
            self._mounted.setdefault(super_block, []).append(_Mounted(mount + self._vfsmount, root))

    def of(self, inode: KnownInode, file_system: FileSystem, effort: Effort) -> FilePath:
        """This is the path of an inode, empty where it has no name.

        Raises:
            Implausible: what should be its name is none.
            MemoryFault: it cannot be read.
            Spent: enough was looked at.
        """
        if not inode.alias:
            return FilePath("", not inode.links)
        dentry = inode.alias - self._alias
        within = self._paths.within(dentry, effort)
        if within == "/" and dentry != file_system.root:
            return FilePath("", not inode.links)  # it is on no tree, as that of a block device
        deleted = not inode.links or within.endswith(_DELETED)
        for mounted in self._mounted.get(file_system.address, ()):
            top = Place(*mounted)
            if mounted.root == file_system.root or self._is_below(dentry, top, effort):
                path = self._paths.of(Place(mounted.mount, dentry), effort)
                return FilePath(path.text, deleted or path.deleted)
        return FilePath(within.removesuffix(_DELETED), deleted)

    def _is_below(self, dentry: int, top: Place, effort: Effort) -> bool:
        return self._paths.from_root(Place(top.mount, dentry), top, effort) is not None


class CachedFiles:
    """This lists the files of one kernel that have pages in memory.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        memmap: tells of pages.
        paths: names the files.
        mounts: tells where they are seen.

    Attributes:
        super_blocks: the file systems.
        array: reads the pages of a file.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        *,
        memmap: MemMap,
        paths: Paths,
        mounts: Mounts,
    ) -> None:
        self.super_blocks = SuperBlocks(space, symbols)
        self.array = XArray(space, symbols)
        self.pages = self.super_blocks.pages + field_offset(symbols, "address_space", "i_pages")
        self._memmap = memmap
        self._mounts = mounts
        self._names = _Names(space, symbols, paths)

    def under(self, folder: str, processes: Iterable[Process]) -> ListWalk[CachedFile]:
        """This lists the files below a folder, or all, those without a path too.

        Args:
            folder: an absolute path; empty for all.
            processes: whose mounts paths may lead through.

        Raises:
            WalkFailed: the list of file systems cannot be walked at all.
        """
        effort = Effort()
        mounts = self._mounts.of_all(processes)
        self._names.learn(row.address for row in mounts.rows.values())
        systems = self.super_blocks.all()
        gaps = [*mounts.gaps, *systems.gaps]
        result: ListWalk[CachedFile] = ListWalk({}, gaps, mounts.retries + systems.retries)
        for system in systems.rows.values():
            if system.made_up:
                continue
            keep = self._keeper(system, _is_below(folder), result.gaps, effort)
            try:
                walk = self.super_blocks.inodes(system, effort, keep)
            except WalkFailed as error:
                result.gaps.append(Gap("super_block.s_inodes", system.address, str(error)))
                continue
            except Spent as spent:
                result.gaps.append(Gap("super_block.s_inodes", system.address, str(spent)))
                break
            result.rows.update(walk.rows)
            result.gaps += walk.gaps
            result.retries += walk.retries
        result.retries += effort.retries
        return result

    def _keeper(
        self,
        system: FileSystem,
        wanted: Callable[[str], bool],
        gaps: list[Gap],
        effort: Effort,
    ) -> Callable[[KnownInode], CachedFile | None]:
        """This makes rows of one file system's inodes; what cannot be told of one is a gap."""

        def keep(inode: KnownInode) -> CachedFile | None:
            if not inode.pages:
                return None
            row, why = self._row(inode, system, effort)
            if not wanted(row.path):
                return None
            gap = Gap(_STRUCTURE, inode.address, f"{row.filesystem} inode {row.inode}: {why}")
            if why and gap not in gaps[-_RETRIES:] and len(gaps) < _MAX_GAPS:
                gaps.append(gap)
            return row

        return keep

    def _row(self, inode: KnownInode, system: FileSystem, effort: Effort) -> tuple[CachedFile, str]:
        """This makes the row of an inode, and says what could not be told of it."""
        path, dirty, why = FilePath("", not inode.links), 0, ""
        try:
            path = self._names.of(inode, system, effort)
        except (MemoryFault, Implausible) as error:
            why = f"its path: {error}"
        try:
            dirty = 0 if system.in_memory else self._dirty(inode, effort)
        except (MemoryFault, Implausible) as error:
            why += f"{'; ' * bool(why)}its pages: {error}"
        is_device = inode.mode & _FORMAT == _BLOCK_DEVICE
        device = device_text(inode.device if is_device else system.device)
        row = CachedFile(
            path.text,
            system.type,
            device,
            inode.number,
            inode.size,
            inode.pages,
            dirty,
            path.deleted and not is_device,
            inode.changed,
            inode.address,
        )
        return row, why

    def _dirty(self, inode: KnownInode, effort: Effort) -> int:
        """This counts the pages that are marked to be written back."""
        count, index = 0, 0
        while True:
            leaf = self.array.leaf(inode.address + self.pages, index, effort)
            count += sum(one.size for one in leaf.entries if self._is_dirty(one))
            if leaf.following is None:
                return count
            index = leaf.following

    def _is_dirty(self, entry: Entry) -> bool:
        if entry.is_value:
            return False
        if entry.marks is not None:
            return bool(entry.marks & _DIRTY)
        # The only page of a file: its marks are among the array's flags, at a bit that moves.
        return bool(self._memmap.at(Va(entry.value)).flags & self._memmap.flags.dirty)


def _is_below(folder: str) -> Callable[[str], bool]:
    """This tells whether paths lead to a folder or below it."""
    top = folder.rstrip("/")
    if not folder:
        return lambda _: True
    return lambda path: path.startswith(f"{top}/") or (path == top != "")
