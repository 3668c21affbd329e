"""Dentries, mounts, files, memory maps and a log, put into a run of kernel memory one by one.

References: Linux include/linux/dcache.h, fs/mount.h, include/linux/fs.h, fdtable.h, mm_types.h,
maple_tree.h, rbtree_types.h, kernel/printk/printk_ringbuffer.h. The offsets are made up.
"""

import struct

from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory
from tests.synthetic.symbols import Layouts

__all__ = ["LAST", "LIST_LAYOUTS", "TREE_LAYOUTS", "KernelFiles", "MapleNode"]

LAST = (1 << 64) - 1
PAGE = 4096
S_IFREG, S_IFDIR, S_IFIFO = 0o100000, 0o040000, 0o010000
INLINE = 32
LEAF, RANGE, ARANGE = 1, 2, 3
SLOTS = {LEAF: (8, 128, 16), RANGE: (8, 128, 16), ARANGE: (8, 80, 10)}

_TASK_SIZE, _TASK = LAYOUTS["task_struct"]
_COMMON: Layouts = {
    **LAYOUTS,
    "task_struct": (
        _TASK_SIZE + 0x40,
        {**_TASK, "files": _TASK_SIZE, "fs": _TASK_SIZE + 8, "nsproxy": _TASK_SIZE + 16},
    ),
    "dentry": (
        0xC0,
        {
            "d_hash": 8,
            "d_parent": 0x20,
            "d_name": 0x28,
            "d_inode": 0x40,
            "d_iname": 0x50,
            "d_op": 0x80,
            "d_sb": 0x90,
        },
    ),
    "qstr": (0x10, {"len": 4, "name": 8}),
    "hlist_bl_node": (0x10, {"pprev": 8}),
    "dentry_operations": (0x80, {"d_dname": 0x30}),
    "vfsmount": (0x20, {"mnt_root": 0, "mnt_sb": 8, "mnt_flags": 0x10}),
    "ns_common": (0x20, {"inum": 8, "ops": 0x10}),
    "proc_ns_operations": (0x10, {"name": 0}),
    "nsproxy": (0x40, {"mnt_ns": 0x18}),
    "inode": (0x100, {"i_mode": 0, "i_sb": 0x28, "i_ino": 0x40, "i_private": 0x80}),
    "super_block": (0x100, {"s_dev": 0x10, "s_type": 0x28, "s_flags": 0x50, "s_subtype": 0x90}),
    "file_system_type": (0x20, {"name": 0}),
    "rb_root": (8, {"rb_node": 0}),
    "rb_node": (0x18, {"rb_right": 8, "rb_left": 0x10}),
    "fs_struct": (0x40, {"root": 0x18}),
    "path": (0x10, {"mnt": 0, "dentry": 8}),
    "files_struct": (0x40, {"fdt": 0x20}),
    "fdtable": (0x20, {"max_fds": 0, "fd": 8}),
    "file": (
        0x80,
        {
            "f_path": 0x10,
            "f_inode": 0x20,
            "f_op": 0x30,
            "f_mode": 0x44,
            "private_data": 0x50,
            "f_pos": 0x68,
        },
    ),
    "net": (0x40, {"ns": 0x10}),
    "socket": (0x40, {"file": 0x10, "sk": 0x18}),
    "sock": (0x80, {"__sk_common": 0, "sk_type": 0x60, "sk_protocol": 0x64, "sk_socket": 0x70}),
    "socket_alloc": (0x140, {"vfs_inode": 0x40}),
    "inet_timewait_sock": (0x80, {"tw_substate": 0x5C}),
    "sock_common": (
        0x60,
        {
            "skc_daddr": 0,
            "skc_rcv_saddr": 4,
            "skc_dport": 0xC,
            "skc_num": 0xE,
            "skc_family": 0x10,
            "skc_state": 0x12,
            "skc_net": 0x20,
            "skc_v6_daddr": 0x28,
            "skc_v6_rcv_saddr": 0x38,
        },
    ),
    "unix_sock": (0xA0, {"addr": 0x80, "peer": 0x88}),
    "unix_address": (0x80, {"len": 4, "name": 8}),
    "netlink_sock": (0xA0, {"portid": 0x90}),
    "rw_semaphore": (0x20, {"count": 0}),
    "vm_operations_struct": (0x60, {"name": 0x20}),
    "vm_special_mapping": (0x10, {"name": 0}),
    "printk_ringbuffer": (0x60, {"desc_ring": 0, "text_data_ring": 0x30}),
    "prb_desc_ring": (
        0x30,
        {"count_bits": 0, "descs": 8, "infos": 0x10, "head_id": 0x18, "tail_id": 0x20},
    ),
    "prb_data_ring": (0x20, {"size_bits": 0, "data": 8}),
    "prb_desc": (0x18, {"state_var": 0, "text_blk_lpos": 8}),
    "prb_data_blk_lpos": (0x10, {"begin": 0, "next": 8}),
    "printk_info": (
        0x60,
        {
            "seq": 0,
            "ts_nsec": 8,
            "text_len": 0x10,
            "facility": 0x12,
            "level": 0x13,
            "dev_info": 0x18,
        },
    ),
    "dev_printk_info": (0x40, {"subsystem": 0, "device": 0x10}),
}
_MM = {
    name: 0x80 + 8 * number
    for number, name in enumerate(
        ("start_brk", "brk", "start_stack", "arg_start", "arg_end", "env_start", "env_end")
    )
} | {"pgd": 0x48, "map_count": 0x60, "mmap_lock": 0x68}
_VMA = {
    name: 8 * number
    for number, name in enumerate(
        (
            "vm_start",
            "vm_end",
            "vm_mm",
            "vm_flags",
            "vm_pgoff",
            "vm_file",
            "vm_ops",
            "vm_private_data",
        )
    )
}
_MOUNT = {
    "mnt_parent": 0x18,
    "mnt_mountpoint": 0x20,
    "mnt": 0x30,
    "mnt_devname": 0x60,
    "mnt_master": 0x90,
    "mnt_id": 0xA0,
    "mnt_group_id": 0xA4,
}
TREE_LAYOUTS: Layouts = {
    **_COMMON,
    "mount": (0xC8, _MOUNT | {"mnt_node": 0x70, "mnt_ns": 0xC0}),
    "mnt_namespace": (0x80, {"ns": 0x10, "mounts": 0x40}),
    "mm_struct": (0x140, _MM | {"mm_mt": 0x100}),
    "maple_tree": (0x10, {"ma_root": 8}),
    "maple_range_64": (0x100, {"pivot": 8, "slot": 128}),
    "maple_arange_64": (0xF8, {"pivot": 8, "slot": 80}),
    "vm_area_struct": (0x80, _VMA),
}
"""As since 6.8: trees for all."""
LIST_LAYOUTS: Layouts = {
    **_COMMON,
    "mount": (0xC8, _MOUNT | {"mnt_list": 0x70, "mnt_ns": 0xC0}),
    "mnt_namespace": (0x80, {"ns": 0x10, "list": 0x40}),
    "mm_struct": (0x140, _MM | {"mmap": 0x100, "mm_rb": 0x108}),
    "vm_area_struct": (0x80, _VMA | {"vm_next": 0x40, "vm_rb": 0x48, "vm_prev": 0x60}),
}
"""As in 5.10: lists, and an rb-tree beside that of mappings."""

NAMERS = (
    *("pipefs_dname", "sockfs_dname", "simple_dname", "anon_inodefs_dname", "ns_dname"),
    *("special_mapping_name", "rename_lock", "mount_lock", "socket_file_ops"),
)

MapleNode = tuple[int, list[tuple[int, int]]]
"""A kind of node, and (pivot, slot) of each of its slots; the last pivot is not stored."""


class KernelFiles(KernelMemory):
    """This is a kernel's memory with one file system, mounted at its root."""

    def __init__(
        self, layouts: Layouts = TREE_LAYOUTS, *, size: int = 1 << 20, mapped: bool = True
    ) -> None:
        super().__init__(size, mapped=mapped, layouts=layouts)
        for name in NAMERS:
            self.symbols.addresses[name] = self.allocate_bytes(64)
        self.super_block = self.allocate("super_block")
        self.u32(self.at(self.super_block, "super_block", "s_dev"), 8 << 20 | 1)
        kind = self.allocate("file_system_type")
        self.u64(kind, self.text(b"ext4"))
        self.u64(self.at(self.super_block, "super_block", "s_type"), kind)
        self.root = self.dentry(b"/", inode=self.inode(S_IFDIR, 2))
        self.root_mount = self.mount(self.root, source=b"/dev/sda1")

    def at(self, address: int, type_name: str, *names: str) -> int:
        return address + self.member(type_name, *names)

    def text(self, data: bytes) -> int:
        place = self.allocate_bytes(len(data) + 1)
        self.write(place, data + b"\0")
        return place

    # ------------------------------------------------------------------------------------ names

    def inode(self, mode: int = S_IFREG, number: int = 12) -> int:
        inode = self.allocate("inode")
        self.u32(inode, mode)
        self.u64(self.at(inode, "inode", "i_sb"), self.super_block)
        self.u64(self.at(inode, "inode", "i_ino"), number)
        return inode

    def dentry(
        self,
        name: bytes,
        parent: int | None = None,
        *,
        inode: int = 0,
        deleted: bool = False,
        namer: str = "",
    ) -> int:
        dentry = self.allocate("dentry")
        held = self.at(dentry, "dentry", "d_iname") if len(name) <= INLINE else self.text(name)
        self.write(held, name)
        self.u32(self.at(dentry, "dentry", "d_name") + 4, len(name))
        self.u64(self.at(dentry, "dentry", "d_name") + 8, held)
        self.u64(self.at(dentry, "dentry", "d_parent"), dentry if parent is None else parent)
        self.u64(self.at(dentry, "dentry", "d_hash") + 8, 0 if deleted else dentry)
        self.u64(self.at(dentry, "dentry", "d_inode"), inode)
        if namer:
            operations = self.allocate("dentry_operations")
            self.u64(operations + 0x30, self.symbols.addresses[namer])
            self.u64(self.at(dentry, "dentry", "d_op"), operations)
        return dentry

    def mount(
        self,
        root: int,
        *,
        on: tuple[int, int] | None = None,
        number: int = 1,
        flags: int = 0,
        source: bytes | None = b"none",
    ) -> int:
        """This makes a mount; ``on`` is (mount, dentry) of where it is mounted."""
        mount = self.allocate("mount")
        parent, mountpoint = on or (mount, root)
        self.u64(self.at(mount, "mount", "mnt_parent"), parent)
        self.u64(self.at(mount, "mount", "mnt_mountpoint"), mountpoint)
        self.u64(self.at(mount, "mount", "mnt"), root)
        self.u64(self.at(mount, "mount", "mnt") + 8, self.super_block)
        self.u32(self.at(mount, "mount", "mnt") + 0x10, flags)
        self.u32(self.at(mount, "mount", "mnt_id"), number)
        name = 0 if source is None else self.text(source)
        self.u64(self.at(mount, "mount", "mnt_devname"), name)
        return mount

    def vfsmount(self, mount: int) -> int:
        return self.at(mount, "mount", "mnt")

    # ------------------------------------------------------------------------------------ files

    def file(self, dentry: int, *, mode: int = 1, position: int = 0, inode: int = 0) -> int:
        file = self.allocate("file")
        self.u64(self.at(file, "file", "f_path"), self.vfsmount(self.root_mount))
        self.u64(self.at(file, "file", "f_path") + 8, dentry)
        self.u64(self.at(file, "file", "f_inode"), inode or self.inode())
        self.u32(self.at(file, "file", "f_mode"), mode)
        self.u64(self.at(file, "file", "f_pos"), position)
        return file

    def open(self, task: int, files: dict[int, int], *, size: int = 64) -> int:
        """This gives a task descriptors, and returns the address of the first slot."""
        struct_files, table = self.allocate("files_struct"), self.allocate("fdtable")
        slots = self.allocate_bytes(8 * size)
        self.u64(self.at(task, "task_struct", "files"), struct_files)
        self.u64(self.at(struct_files, "files_struct", "fdt"), table)
        self.u32(table, size)
        self.u64(table + 8, slots)
        for number, file in files.items():
            self.u64(slots + 8 * number, file)
        return slots

    def socket(self, sock: int, *, number: int = 4711) -> int:
        """This makes the file of a socket."""
        inode = self.inode(0o140777, number)
        file = self.file(self.dentry(b"", namer="sockfs_dname", inode=inode), inode=inode)
        socket = self.allocate("socket")
        self.u64(self.at(file, "file", "f_op"), self.symbols.addresses["socket_file_ops"])
        self.u64(self.at(file, "file", "private_data"), socket)
        self.u64(self.at(socket, "socket", "file"), file)
        self.u64(self.at(socket, "socket", "sk"), sock)
        return file

    def sock(self, family: int, *, kind: int = 1, protocol: int = 6, state: int = 10) -> int:
        """This makes a ``struct sock`` in network namespace 99, with room for what families add."""
        sock, net = self.allocate("unix_sock"), self.allocate("net")
        self.u32(net + 0x18, 99)
        self.u32(self.at(sock, "sock_common", "skc_family"), family | state << 16)
        self.u64(self.at(sock, "sock_common", "skc_net"), net)
        self.u32(self.at(sock, "sock", "sk_type"), kind)
        self.u32(self.at(sock, "sock", "sk_protocol"), protocol)
        return sock

    def bind(self, sock: int, path: bytes) -> int:
        """This gives a Unix socket an address."""
        held = self.allocate("unix_address")
        self.u32(held + 4, len(path) + 2)
        self.write(held + 8, b"\1\0" + path)
        self.u64(self.at(sock, "unix_sock", "addr"), held)
        return held

    # ----------------------------------------------------------------------------------- mounts

    def namespace(self, mounts: list[int], *, number: int = 4026531841) -> int:
        namespace = self.allocate("mnt_namespace")
        self.u32(self.at(namespace, "mnt_namespace", "ns") + 8, number)
        for mount in mounts:
            self.u64(self.at(mount, "mount", "mnt_ns"), namespace)
        if "mounts" in self.layouts["mnt_namespace"][1]:
            nodes = [self.at(mount, "mount", "mnt_node") for mount in mounts]
            self.u64(self.at(namespace, "mnt_namespace", "mounts"), self.balanced(nodes))
        else:
            head = self.at(namespace, "mnt_namespace", "list")
            self.make_list(head)
            for mount in mounts:
                self.add_tail(self.at(mount, "mount", "mnt_list"), head)
        return namespace

    def enter(self, task: int, namespace: int, *, root: tuple[int, int] | None = None) -> None:
        """This puts a task into a namespace; ``root`` is (mount, dentry)."""
        proxy, fs = self.allocate("nsproxy"), self.allocate("fs_struct")
        self.u64(self.at(task, "task_struct", "nsproxy"), proxy)
        self.u64(self.at(proxy, "nsproxy", "mnt_ns"), namespace)
        mount, dentry = root or (self.root_mount, self.root)
        self.u64(self.at(task, "task_struct", "fs"), fs)
        self.u64(self.at(fs, "fs_struct", "root"), self.vfsmount(mount))
        self.u64(self.at(fs, "fs_struct", "root") + 8, dentry)

    def balanced(self, nodes: list[int]) -> int:
        """This links nodes to a tree of their order, and returns its topmost one."""
        if not nodes:
            return 0
        middle = len(nodes) // 2
        self.u64(nodes[middle] + 0x10, self.balanced(nodes[:middle]))
        self.u64(nodes[middle] + 8, self.balanced(nodes[middle + 1 :]))
        return nodes[middle]

    # ----------------------------------------------------------------------------------- memory

    def memory(self, task: int, **members: int) -> int:
        mm = self.allocate("mm_struct")
        self.u64(self.at(task, "task_struct", "mm"), mm)
        for name, value in members.items():
            self.u64(self.at(mm, "mm_struct", name), value)
        return mm

    def vma(self, mm: int, start: int, end: int, **members: int) -> int:
        vma = self.allocate("vm_area_struct")
        for name, value in {"vm_start": start, "vm_end": end, "vm_mm": mm, **members}.items():
            self.u64(self.at(vma, "vm_area_struct", name), value)
        return vma

    def link(self, mm: int, vmas: list[int]) -> None:
        """This puts mappings, in the order of addresses, where this kernel has them."""
        self.u32(self.at(mm, "mm_struct", "map_count"), len(vmas))
        if "mm_mt" in self.layouts["mm_struct"][1]:
            self.u64(self.at(mm, "mm_struct", "mm_mt") + 8, self.maple_of(vmas))
            return
        link, before = self.at(mm, "mm_struct", "mmap"), 0
        for vma in vmas:
            self.u64(link, vma)
            self.u64(self.at(vma, "vm_area_struct", "vm_prev"), before)
            link, before = self.at(vma, "vm_area_struct", "vm_next"), vma
        self.u64(link, 0)
        nodes = [self.at(vma, "vm_area_struct", "vm_rb") for vma in vmas]
        self.u64(self.at(mm, "mm_struct", "mm_rb"), self.balanced(nodes))

    def maple_node(self, kind: int, slots: list[tuple[int, int]], *, root: bool = False) -> int:
        """This makes a node of (last number, slot), and returns what points to it."""
        node = (self.allocate_bytes(512) + 255) & ~255
        pivot, slot, count = SLOTS[kind]
        assert len(slots) <= count
        self.u64(node, 1)  # no parent that is itself
        for place, (last, held) in enumerate(slots):
            if place < count - 1:
                self.u64(node + pivot + 8 * place, last if last != LAST or not place else 0)
            self.u64(node + slot + 8 * place, held)
        return node | kind << 3 | (6 if root else 4)

    def maple_of(self, vmas: list[int], *, per_leaf: int = 4) -> int:
        """This makes a tree of leaves below one node, and returns its root pointer."""
        ranges: list[tuple[int, int]] = []
        position = 0
        for vma in vmas:
            start, end = self.get(vma), self.get(vma + 8)
            if start > position:
                ranges.append((start - 1, 0))
            ranges.append((end - 1, vma))
            position = end
        ranges.append((LAST, 0))
        if len(ranges) <= per_leaf:
            return self.maple_node(LEAF, ranges, root=True)
        parts = [ranges[at : at + per_leaf] for at in range(0, len(ranges), per_leaf)]
        leaves = [(part[-1][0], self._leaf(part)) for part in parts]
        return self.maple_node(ARANGE, leaves, root=True)

    def _leaf(self, part: list[tuple[int, int]]) -> int:
        """This is a leaf; its last pivot is that of its parent, and not stored where it is LAST."""
        return self.maple_node(LEAF, part)

    # -------------------------------------------------------------------------------------- log

    def log(
        self, texts: list[bytes], *, count_bits: int = 3, size_bits: int = 8, first: int = 0
    ) -> int:
        """This writes a ring of records as the kernel does; those that do not fit overwrite."""
        ring = self.allocate("printk_ringbuffer")
        count, size = 1 << count_bits, 1 << size_bits
        descriptors = self.allocate_bytes(0x18 * count)
        infos, data = self.allocate_bytes(0x60 * count), self.allocate_bytes(size)
        position = 0
        for number, text in enumerate(texts, first):
            begin, position = self._block(data, size, position, number, text)
            place = number % count
            self.write(
                descriptors + 0x18 * place,
                struct.pack("<QQQ", number | 2 << 62, begin, position),
            )
            self.write(
                infos + 0x60 * place,
                struct.pack("<QQHBB4x", number, number * 10**9, len(text), 1, 6)
                + b"usb".ljust(16, b"\0")
                + b"+usb:1".ljust(48, b"\0"),
            )
        last = first + len(texts) - 1
        oldest = max(first, last - count + 1)
        self.write(ring, struct.pack("<I4xQQQQ", count_bits, descriptors, infos, last, oldest))
        self.write(ring + 0x30, struct.pack("<I4xQ", size_bits, data))
        pointer = self.allocate_bytes(8)
        self.u64(pointer, ring)
        self.symbols.addresses["prb"] = pointer
        return ring

    def _block(
        self, data: int, size: int, position: int, number: int, text: bytes
    ) -> tuple[int, int]:
        """This puts a block of text where there is room: not across the end of the ring."""
        length = (8 + len(text) + 7) & ~7
        begin, place = position, position % size
        if place + length > size:
            position, place = (position // size + 1) * size, 0
        self.write(data + place, struct.pack("<Q", number) + text.ljust(length - 8, b"\0"))
        return begin, position + length
