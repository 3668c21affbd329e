"""Mounts: the file systems that each mount namespace is made of.

References: Linux fs/mount.h, include/linux/mount.h (``MNT_NOSUID`` and so on), fs/proc_namespace.c
(``show_mountinfo``), fs/pnode.h; a namespace keeps its mounts in a list, since 6.8 in an rb-tree
(2eea9ce4310d).
"""

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Mount, Process
from qvmi.semantics.linux.fs.d_path import Paths, Place, text_of
from qvmi.semantics.linux.fs.inode import device_text
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.rbtree import RbTree
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Mounts"]

_STRUCTURE: Final = "mnt_namespace"
_MAX_MOUNTS: Final = 100_000
"""What ``fs.mount-max`` allows a namespace unless an administrator raises it."""
_MAX_NAMESPACES: Final = 100_000
"""What a machine full of containers has is some thousand."""
_MAX_GAPS: Final = 1000
_RETRIES: Final = 4
_MAX_TYPE: Final = 64
"""Bytes of a file system's type; the longest in the kernel has 16."""
_MAX_SOURCE: Final = 4096
"""``PATH_MAX``: a source is copied from user space with this bound."""
_POINTER: Final = Struct("<Q")

_CURSOR: Final = 0x1000_0000
"""``MNT_CURSOR``: a reader's bookmark in the list, no mount; 5.8 to 6.7."""
_READ_ONLY: Final = 0x40
_OPTIONS: Final = (
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
    (0x80, "nosymfollow"),
)
_SUPER_READ_ONLY: Final = 1
_SUPER_OPTIONS: Final = ((16, "sync"), (128, "dirsync"), (64, "mand"), (1 << 25, "lazytime"))
_OLD_SHARED, _OLD_UNBINDABLE = 0x1000, 0x2000
"""In ``mnt_flags``."""
_SHARED, _UNBINDABLE = 1, 2
"""In ``mnt_t_flags``, where the kernel has it."""


def _words(flags: int, read_only: int, options: Iterable[tuple[int, str]]) -> str:
    """This writes flags as ``/proc/PID/mountinfo`` does."""
    words = ["ro" if flags & read_only else "rw"]
    words += [word for bit, word in options if flags & bit]
    return ",".join(words)


class _Super(NamedTuple):
    """This is what rows say of a file system."""

    device: str
    options: str
    type: str


class _Where(NamedTuple):
    """This is whose mounts are listed.

    Args:
        namespace: address of the ``mnt_namespace``; ``number`` as ``/proc/PID/ns/mnt`` shows it.
        root: where paths begin; None for the namespace's own root.
    """

    namespace: int
    number: int
    root: Place | None


class Mounts:
    """This lists the mounts of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.
        paths: names where they are mounted.

    Raises:
        SymbolsError: the profile lacks what mounts need, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks, paths: Paths
    ) -> None:
        self._space = space
        self._tasks = tasks
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(Struct("<I"))
        self._nsproxy = field_offset(symbols, "task_struct", "nsproxy")
        self._namespace = field_offset(symbols, "nsproxy", "mnt_ns")
        self._number = field_offset(symbols, "mnt_namespace", "ns")
        self._number += field_offset(symbols, "ns_common", "inum")
        self._event = symbols.find_field("mnt_namespace", ("event",))
        self._fs = field_offset(symbols, "task_struct", "fs")
        root = field_offset(symbols, "fs_struct", "root")
        self._read_root = compile_reader(
            space,
            (root + field_offset(symbols, "path", "mnt"), "Q"),
            (root + field_offset(symbols, "path", "dentry"), "Q"),
        )
        self._rows = _Rows(space, symbols, paths)
        self._walk = _walker(self._rows, space, symbols)

    def of_all(self, processes: Iterable[Process], effort: Effort | None = None) -> ListWalk[Mount]:
        """This lists the mounts of every namespace that one of the processes is in.

        Args:
            processes: the processes.
            effort: what it may cost; as much as any question unless told otherwise.
        """
        result: ListWalk[Mount] = ListWalk()
        effort = effort or Effort()
        namespaces: dict[int, None] = {}
        for process in processes:
            try:
                namespace = self._namespace_of(process)
            except MemoryFault as fault:
                if self._tasks.is_there(process):
                    result.gaps.append(Gap("nsproxy.mnt_ns", process.address, str(fault)))
                effort.retries += 1
                continue
            if namespace:
                namespaces[namespace] = None
            if len(namespaces) > _MAX_NAMESPACES or len(result.gaps) > _MAX_GAPS:
                why = "given up: so many namespaces, or so many are wrong"
                result.gaps.append(Gap("nsproxy.mnt_ns", process.address, why))
                break
        self._add_all(namespaces, result, effort)
        result.retries += effort.retries
        return result

    def last_change(self, processes: Iterable[Process]) -> int | None:
        """This is the number of the last change of mounts in the namespaces of processes.

        The kernel counts all changes together, and notes in a namespace the number of its last one.

        Returns:
            None where this kernel does not tell, or it cannot be read.
        """
        if self._event is None:
            return None
        last = 0
        try:
            for namespace in {self._namespace_of(process) for process in processes} - {0}:
                last = max(last, self._read_pointer(namespace + self._event.offset)[0])
        except MemoryFault:
            return None
        return last

    def of(self, process: Process) -> ListWalk[Mount]:
        """This lists the mounts that a process sees, with paths from its own root.

        Raises:
            WalkFailed: the process is gone or has none any more, or they cannot be read at all.
        """
        self._tasks.require_there(process)
        result: ListWalk[Mount] = ListWalk()
        effort = Effort()
        try:
            namespace = self._namespace_of(process)
            fs = self._read_pointer(process.address + self._fs)[0]
            if not namespace or not fs:
                raise WalkFailed(_STRUCTURE, f"process {process.pid} is in none any more")
            number = self._read_number(namespace + self._number)[0]
            root = Place(*self._read_root(fs))
            self._add(_Where(namespace, number, root), result, effort)
            if not (result.rows or result.gaps or self._rows.is_of(root.mount, namespace)):
                why = f"the root of process {process.pid} lies in no mount of its namespace"
                result.gaps.append(Gap("fs_struct.root", process.address, why))
        except MemoryFault as fault:
            raise WalkFailed(_STRUCTURE, f"of process {process.pid}: {fault}") from fault
        except Spent as spent:
            result.gaps.append(Gap(_STRUCTURE, None, str(spent)))
        result.retries += effort.retries
        return result

    def _add_all(self, namespaces: Iterable[int], result: ListWalk[Mount], effort: Effort) -> None:
        for namespace in namespaces:
            try:
                number = self._read_number(namespace + self._number)[0]
                self._add(_Where(namespace, number, None), result, effort)
            except (MemoryFault, WalkFailed) as error:
                result.gaps.append(Gap(_STRUCTURE, Va(namespace), str(error)))
            except Spent as spent:
                result.gaps.append(Gap(_STRUCTURE, Va(namespace), str(spent)))
                return
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many namespaces are wrong"
                result.gaps.append(Gap(_STRUCTURE, Va(namespace), why))
                return

    def _add(self, where: _Where, result: ListWalk[Mount], effort: Effort) -> None:
        walk = self._walk(where, effort)
        result.rows.update(enumerate(walk.rows.values(), len(result.rows)))
        result.gaps += walk.gaps
        result.retries += walk.retries

    def _namespace_of(self, process: Process) -> int:
        """This is the address of a process's mount namespace, 0 for a zombie."""
        nsproxy = self._read_pointer(process.address + self._nsproxy)[0]
        return int(self._read_pointer(nsproxy + self._namespace)[0]) if nsproxy else 0


def _walker(
    rows: "_Rows", space: AddressSpace, symbols: Symbols
) -> Callable[[_Where, Effort], ListWalk[Mount]]:
    """This is the walk that this kernel needs: its namespaces have an rb-tree, or a list."""
    if symbols.find_field("mount", ("mnt_node",)) is not None:
        return _OfTree(rows, space, symbols).walk
    return _OfList(rows, space, symbols).walk


class _OfList:
    """This walks ``mnt_namespace.list``."""

    def __init__(self, rows: "_Rows", space: AddressSpace, symbols: Symbols) -> None:
        self._rows = rows
        self._space = space
        self._head = field_offset(symbols, "mnt_namespace", "list")
        self._link = field_offset(symbols, "mount", "mnt_list")
        self._read = compile_reader(space, (self._link, "Q"), (self._link + 8, "Q"))

    def walk(self, where: _Where, effort: Effort) -> ListWalk[Mount]:
        """This lists one namespace's mounts."""

        def visit(mount: Va, _: tuple[Any, ...]) -> Mount | None:
            return self._rows.row(mount, where, effort)

        shape = ListShape("mount.mnt_list", self._link, self._read, visit, _MAX_MOUNTS)
        walk = walk_list(self._space, Va(where.namespace + self._head), shape)
        seen = {mount: row for mount, row in walk.rows.items() if row is not None}
        return ListWalk(seen, walk.gaps, walk.retries)


class _OfTree:
    """This walks ``mnt_namespace.mounts``."""

    def __init__(self, rows: "_Rows", space: AddressSpace, symbols: Symbols) -> None:
        self._rows = rows
        self._tree = RbTree(space, symbols)
        self._root = field_offset(symbols, "mnt_namespace", "mounts")
        self._root += field_offset(symbols, "rb_root", "rb_node")
        self._node = field_offset(symbols, "mount", "mnt_node")
        self._read_pointer = space.unpacker(_POINTER)

    def walk(self, where: _Where, effort: Effort) -> ListWalk[Mount]:
        """This lists one namespace's mounts; ``mount_lock`` tells whether any changed meanwhile."""
        try:
            return self._rows.paths.steady(effort, lambda: self._once(where, effort))
        except Implausible as error:
            raise WalkFailed(_STRUCTURE, str(error)) from error

    def _once(self, where: _Where, effort: Effort) -> ListWalk[Mount]:
        root = self._read_pointer(where.namespace + self._root)[0]
        nodes, gaps = self._tree.nodes(root, "mnt_namespace.mounts", effort)
        result: ListWalk[Mount] = ListWalk(gaps=gaps)
        for node in nodes:
            mount = Va(node - self._node)
            try:
                row = self._rows.row(mount, where, effort)
            except (MemoryFault, Implausible) as error:
                result.gaps.append(Gap("struct mount", mount, str(error)))
            else:
                if row is not None:
                    result.rows[mount] = row
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many mounts are wrong"
                result.gaps.append(Gap("mnt_namespace.mounts", mount, why))
                break
        return result


class _Rows:
    """This makes the rows of mounts.

    Attributes:
        paths: names where they are.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, paths: Paths) -> None:
        def mount(*names: str) -> int:
            return field_offset(symbols, "mount", *names)

        self.paths = paths
        self._space = space
        self._within = within = mount("mnt")
        self._read = compile_reader(
            space,
            (mount("mnt_parent"), "Q"),
            (within + field_offset(symbols, "vfsmount", "mnt_root"), "Q"),
            (within + field_offset(symbols, "vfsmount", "mnt_sb"), "Q"),
            (within + field_offset(symbols, "vfsmount", "mnt_flags"), "I"),
            (mount("mnt_devname"), "Q"),
            (mount("mnt_master"), "Q"),
            (mount("mnt_id"), "I"),
            (mount("mnt_group_id"), "I"),
        )
        self._read_number = space.unpacker(Struct("<I"))
        self._id, self._group = mount("mnt_id"), mount("mnt_group_id")
        self._namespace = mount("mnt_ns")
        self._of_dentry = field_offset(symbols, "dentry", "d_sb")
        own = symbols.find_field("mount", ("mnt_t_flags",))
        self._propagation_flags = None if own is None else own.offset
        self._read_super = compile_reader(
            space,
            (field_offset(symbols, "super_block", "s_dev"), "I"),
            (field_offset(symbols, "super_block", "s_type"), "Q"),
            (field_offset(symbols, "super_block", "s_flags"), "Q"),
            (field_offset(symbols, "super_block", "s_subtype"), "Q"),
        )
        self._type_name = field_offset(symbols, "file_system_type", "name")
        self._read_pointer = space.unpacker(_POINTER)

    def row(self, mount: Va, where: _Where, effort: Effort) -> Mount | None:
        """This makes the row of one mount.

        Returns:
            None for what is no mount, or cannot be reached from the root that paths begin at.

        Raises:
            Implausible: what lies there is no mount.
            MemoryFault: it cannot be read.
            Spent: enough was looked at.
        """
        effort.spend(1)
        parent, root, super_block, flags, source, master, number, group = self._read(mount)
        if flags & _CURSOR:
            return None
        path = self.paths.from_root(Place(mount + self._within, root), where.root, effort)
        if path is None:
            return None
        its = self._super(super_block)
        return Mount(
            number,
            self._read_number(parent + self._id)[0],
            where.number,
            its.device,
            self.paths.within(root, effort),
            path,
            _words(flags, _READ_ONLY, _OPTIONS),
            self._propagation(mount, flags, master, group),
            its.type,
            self._text(source, _MAX_SOURCE) if source else "none",
            its.options,
            mount,
        )

    def is_of(self, vfsmount: int, namespace: int) -> bool:
        """This tells whether a mount is one of a namespace, or of none any more, as after ``umount -l``."""
        mount = Va(vfsmount - self._within)
        try:
            owner = self._read_pointer(mount + self._namespace)[0]
            if owner:
                return bool(owner == namespace)
            _, root, super_block, *_ = self._read(mount)
            return bool(
                super_block and self._read_pointer(root + self._of_dentry)[0] == super_block
            )
        except MemoryFault:
            return False

    def _super(self, super_block: int) -> _Super:
        device, kind, flags, subtype = self._read_super(super_block)
        name = self._text(self._read_pointer(kind + self._type_name)[0], _MAX_TYPE)
        if subtype:
            name += f".{self._text(subtype, _MAX_TYPE)}"
        return _Super(device_text(device), _words(flags, _SUPER_READ_ONLY, _SUPER_OPTIONS), name)

    def _propagation(self, mount: int, flags: int, master: int, group: int) -> str:
        shared, unbindable = flags & _OLD_SHARED, flags & _OLD_UNBINDABLE
        if self._propagation_flags is not None:
            own = self._read_number(mount + self._propagation_flags)[0]
            shared, unbindable = own & _SHARED, own & _UNBINDABLE
        words = [f"shared:{group}"] if shared else []
        if master:
            words.append(f"master:{self._read_number(master + self._group)[0]}")
        return " ".join([*words, "unbindable"] if unbindable else words)

    def _text(self, at: int, limit: int) -> str:
        return text_of(self._space.read_string(Va(at), limit))
