"""Paths of files: names of dentries, climbed through the mounts that they are seen in.

References: Linux fs/d_path.c (``d_path``, ``prepend_path``, ``simple_dname``), include/linux/dcache.h,
fs/mount.h. What has no path is named by its file system: fs/pipe.c (``pipefs_dname``), net/socket.c
(``sockfs_dname``), fs/anon_inodes.c, fs/nsfs.c (``ns_dname``), fs/pidfs.c.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, TypeVar

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["FilePath", "Paths", "Place", "Way", "text_of"]

Found = TypeVar("Found")

_NAME_MAX: Final = 255
"""``NAME_MAX``, which no component of a path exceeds."""
_MAX_STEPS: Final = 4096
"""Dentries and mounts on the way up: ``PATH_MAX`` has room for half as many names."""
_INLINE: Final = 32
"""Bytes of ``d_iname`` that are read along with a dentry; newer kernels have 40."""
_RETRIES: Final = 32
"""Looks at one path. A guest that renames and mounts in a loop spoils about one look of eight: with four,
one path of some 10,000 was not told."""
_MAX_OPERATIONS: Final = 256
"""Tables of operations that are remembered: a kernel has some dozen."""
_MAX_KIND: Final = 32
"""Bytes of a namespace's kind; the longest is ``pid_for_children``."""
_MAX_WAY: Final = 64
"""Dentries on a way that is kept: few paths have so many names, and those are climbed again."""
_POINTER: Final = Struct("<Q")
_COUNT: Final = Struct("<I")


def text_of(name: bytes) -> str:
    r"""This is what the guest says as text; bytes that are no UTF-8 are written as ``\xNN``."""
    return name.decode("utf-8", "backslashreplace")


class Place(NamedTuple):
    """This is where something lies. Corresponds to ``struct path``.

    Args:
        mount: address of a ``struct vfsmount``.
        dentry: address of a ``struct dentry``.
    """

    mount: int
    dentry: int


class FilePath(NamedTuple):
    """This is how a file is called.

    Args:
        text: its path from the root of its mount namespace, or what the kernel says in its place.
        deleted: whether nothing leads there any more.
    """

    text: str
    deleted: bool


Way = tuple[tuple[int, tuple[Any, ...]], ...]
"""Dentries, each with what was read of it."""


class _Dentry(NamedTuple):
    """These are the members of a ``struct dentry`` that names are made of."""

    hashed: int
    parent: int
    length: int
    name: int
    inode: int
    inline: bytes
    operations: int


class Paths:
    """This names the files of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Attributes:
        read_dentry: reads what names depend on of the dentry at an address; raises MemoryFault.

    Raises:
        SymbolsError: the profile lacks what paths need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self.read_dentry = _dentry_reader(space, symbols)
        self._inline = field_offset(symbols, "dentry", "d_iname", "d_shortname")
        self._mount_to_vfsmount = field_offset(symbols, "mount", "mnt")
        self._read_mount = compile_reader(
            space,
            (field_offset(symbols, "mount", "mnt_parent"), "Q"),
            (field_offset(symbols, "mount", "mnt_mountpoint"), "Q"),
            (self._mount_to_vfsmount + field_offset(symbols, "vfsmount", "mnt_root"), "Q"),
        )
        self._read_pointer = space.unpacker(_POINTER)
        self._read_count = space.unpacker(_COUNT)
        self._renames = address(symbols, "rename_lock")
        self._moves = address(symbols, "mount_lock")
        self._dname = field_offset(symbols, "dentry_operations", "d_dname")
        self._number = field_offset(symbols, "inode", "i_ino")
        self._private = field_offset(symbols, "inode", "i_private")
        self._namespace_ops = field_offset(symbols, "ns_common", "ops")
        self._namespace_kind = field_offset(symbols, "proc_ns_operations", "name")
        self._namers = self._special_namers(symbols)
        self._namer_of: dict[int, int] = {}

    def of(self, place: Place, effort: Effort) -> FilePath:
        """This names a file as ``/proc/PID/fd`` does.

        Raises:
            Implausible: what lies there is no file, or its path changes all the time.
            MemoryFault: it cannot be read.
            Spent: enough was looked at.
        """
        return self.steady(effort, lambda: self._name(place, effort))

    def from_root(self, place: Place, root: Place | None, effort: Effort) -> str | None:
        """This is a path as somebody with another root sees it.

        Args:
            place: what is named.
            root: where paths begin; None for the root of the mount namespace.
            effort: what it may cost.

        Returns:
            None where no path leads there from that root.

        Raises:
            Implausible, MemoryFault, Spent: as :meth:`of`.
        """

        def climb() -> str | None:
            path, at_root = self._climb(place, root, effort)
            return text_of(path) if at_root or root is None else None

        return self.steady(effort, climb)

    def within(self, dentry: int, effort: Effort) -> str:
        """This is a path from the root of its own file system. Corresponds to ``dentry_path``.

        Raises:
            Implausible, MemoryFault, Spent: as :meth:`of`.
        """
        return self.steady(effort, lambda: self._within(dentry, effort))

    def steady(self, effort: Effort, look: Callable[[], Found]) -> Found:
        """This looks again until no name and no mount has changed meanwhile, as the kernel does.

        A count that is odd all the time is of a guest that stands still in the midst of a change.
        """
        for _ in range(_RETRIES):
            before = self.changes()
            try:
                found = look()
            except (MemoryFault, Implausible):
                if self.changes() == before:
                    raise
            else:
                if self.changes() == before:
                    return found
            effort.retries += 1
        raise Implausible("names or mounts change faster than they can be read")

    def changes(self) -> tuple[int, int]:
        """These are the sequence counts of ``rename_lock`` and ``mount_lock``, their first members."""
        return self._read_count(self._renames)[0], self._read_count(self._moves)[0]

    def way(self, place: Place) -> Way | None:
        """These are the dentries from a file up to its mount.

        Returns:
            None where they cannot be read, or do not say all that the path depends on: a long name
            lies elsewhere, and what a file system makes up depends on the inode.
        """
        found: list[tuple[int, tuple[Any, ...]]] = []
        dentry = place.dentry
        try:
            mount_root = self._read_mount(place.mount - self._mount_to_vfsmount)[2]
            while len(found) < _MAX_WAY:
                values = self.read_dentry(dentry)
                its = _Dentry._make(values)
                if not self._says_all(dentry, its):
                    return None
                found.append((dentry, values))
                if dentry in {mount_root, its.parent}:
                    return tuple(found)
                dentry = its.parent
        except MemoryFault:
            return None  # whoever names the file finds out whether it is still so
        return None

    def _says_all(self, dentry: int, its: _Dentry) -> bool:
        """This tells whether a dentry holds its own name, and nobody makes up another one."""
        is_inline = its.name == dentry + self._inline and its.length <= _INLINE
        return is_inline and not (its.operations and self._namer(its.operations))

    def _dentry(self, dentry: int) -> _Dentry:
        return _Dentry._make(self.read_dentry(dentry))

    def _name_of(self, dentry: int, its: _Dentry) -> bytes:
        """This is a dentry's own name, which a short one holds itself."""
        if its.length > _NAME_MAX:
            raise Implausible(f"the dentry at {dentry:#x} has a name of {its.length} bytes")
        if its.name == dentry + self._inline and its.length <= _INLINE:
            return its.inline[: its.length]
        return self._space.read(Va(its.name), its.length)

    def _name(self, place: Place, effort: Effort) -> FilePath:
        its = self._dentry(place.dentry)
        if its.operations:
            namer = self._namer(its.operations)
            mount_root = self._read_mount(place.mount - self._mount_to_vfsmount)[2]
            if namer and not (its.parent == place.dentry == mount_root):
                return self._special(place.dentry, namer)
        path, _ = self._climb(place, None, effort)
        return FilePath(text_of(path), not its.hashed and its.parent != place.dentry)

    def _climb(self, place: Place, root: Place | None, effort: Effort) -> tuple[bytes, bool]:
        """This climbs from a file to a root, or as far as it can. Corresponds to ``prepend_path``.

        Returns:
            the path, and whether it begins at the root.
        """
        names: list[bytes] = []
        mount, dentry = place.mount - self._mount_to_vfsmount, place.dentry
        parent_mount, mountpoint, mount_root = self._read_mount(mount)
        end = None if root is None else (root.mount - self._mount_to_vfsmount, root.dentry)
        for _ in range(_MAX_STEPS):
            effort.spend(1)
            if (mount, dentry) == end:
                break
            if dentry == mount_root:
                if parent_mount == mount:
                    break
                mount, dentry = parent_mount, mountpoint
                parent_mount, mountpoint, mount_root = self._read_mount(mount)
                continue
            its = self._dentry(dentry)
            if its.parent == dentry:
                break  # it was moved out of what is mounted
            names.append(self._name_of(dentry, its))
            dentry = its.parent
        else:
            raise Implausible(f"more than {_MAX_STEPS} steps from {place.dentry:#x} up")
        return b"/" + b"/".join(reversed(names)), (mount, dentry) == end

    def _within(self, dentry: int, effort: Effort) -> str:
        names: list[bytes] = []
        first = its = self._dentry(dentry)
        if its.operations and (namer := self._namer(its.operations)):
            return self._special(dentry, namer).text
        while its.parent != dentry:
            names.append(self._name_of(dentry, its))
            if len(names) > _MAX_STEPS:
                raise Implausible(f"more than {_MAX_STEPS} names above {dentry:#x}")
            dentry = its.parent
            its = self._dentry(dentry)
        effort.spend(len(names) + 1)
        deleted = "//deleted" if names and not first.hashed else ""
        return "/" + text_of(b"/".join(reversed(names))) + deleted

    def _special(self, dentry: int, namer: int) -> FilePath:
        """This is the name that a file system makes up for what has no path."""
        its = self._dentry(dentry)
        make = self._namers.get(namer)
        if make is None:
            name = text_of(self._name_of(dentry, its))
            return FilePath(name, deleted=False)
        return make(dentry, its)

    def _namer(self, operations: int) -> int:
        """This is the function ``d_dname`` of a table of operations, 0 for none; it never changes."""
        known = self._namer_of.get(operations)
        if known is None:
            known = int(self._read_pointer(operations + self._dname)[0])
            if len(self._namer_of) < _MAX_OPERATIONS:
                self._namer_of[operations] = known
        return known

    def _special_namers(self, symbols: Symbols) -> dict[int, Callable[[int, _Dentry], FilePath]]:
        """These are the makers of names by the kernel's function for it, as far as it has them."""
        makers = {
            "pipefs_dname": self._numbered("pipe"),
            "sockfs_dname": self._numbered("socket"),
            "simple_dname": self._simple,
            "anon_inodefs_dname": self._anonymous,
            "ns_dname": self._namespace,
            "pidfs_dname": lambda _dentry, _its: FilePath("anon_inode:[pidfd]", deleted=False),
        }
        found = ((symbols.find(name), maker) for name, maker in makers.items())
        return {at: maker for at, maker in found if at is not None}

    def _numbered(self, kind: str) -> Callable[[int, _Dentry], FilePath]:
        def make(_: int, its: _Dentry) -> FilePath:
            number = self._read_pointer(its.inode + self._number)[0]
            return FilePath(f"{kind}:[{number}]", deleted=False)

        return make

    def _simple(self, dentry: int, its: _Dentry) -> FilePath:
        return FilePath("/" + text_of(self._name_of(dentry, its)), deleted=True)

    def _anonymous(self, dentry: int, its: _Dentry) -> FilePath:
        return FilePath("anon_inode:" + text_of(self._name_of(dentry, its)), deleted=False)

    def _namespace(self, _: int, its: _Dentry) -> FilePath:
        """This names a namespace, which is what the inode's ``i_private`` points to."""
        namespace = self._read_pointer(its.inode + self._private)[0]
        operations = self._read_pointer(namespace + self._namespace_ops)[0]
        kind = self._read_pointer(operations + self._namespace_kind)[0]
        name = text_of(self._space.read_string(Va(kind), _MAX_KIND))
        return FilePath(
            f"{name}:[{self._read_pointer(its.inode + self._number)[0]}]", deleted=False
        )


def _dentry_reader(space: AddressSpace, symbols: Symbols) -> Reader:
    def dentry(*names: str) -> int:
        return field_offset(symbols, "dentry", *names)

    name = dentry("d_name")
    return compile_reader(
        space,
        (dentry("d_hash") + field_offset(symbols, "hlist_bl_node", "pprev"), "Q"),
        (dentry("d_parent"), "Q"),
        (name + field_offset(symbols, "qstr", "len"), "I"),
        (name + field_offset(symbols, "qstr", "name"), "Q"),
        (dentry("d_inode"), "Q"),
        (dentry("d_iname", "d_shortname"), f"{_INLINE}s"),
        (dentry("d_op"), "Q"),
    )
