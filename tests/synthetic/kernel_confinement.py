"""Credentials, namespaces and cgroups, put into a run of kernel memory one by one.

References: Linux include/linux/cred.h, nsproxy.h, pid.h, cgroup-defs.h, kernfs.h,
kernel/cgroup/cgroup-internal.h. The offsets are made up.
"""

import struct

from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory
from tests.synthetic.symbols import Layouts

__all__ = ["CONFINED", "KernelConfinement", "without"]

ONLINE = 2

_TASK_SIZE, _TASK = LAYOUTS["task_struct"]
_MORE = ("cred", "atomic_flags", "seccomp", "nsproxy", "thread_pid", "cgroups")
_IDS = ("uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid", "securebits")
_SETS = ("cap_inheritable", "cap_permitted", "cap_effective", "cap_bset", "cap_ambient")
_POINTERS = ("security", "user_ns", "group_info")
_KINDS = {"uts_ns": "uts_namespace", "ipc_ns": "ipc_namespace", "mnt_ns": "mnt_namespace"}
_LATER_KINDS = {"net_ns": "net", "time_ns": "time_namespace", "cgroup_ns": "cgroup_namespace"}
_NAMESPACES = (*_KINDS.values(), *_LATER_KINDS.values(), "user_namespace")

CONFINED: Layouts = {
    **LAYOUTS,
    "task_struct": (
        _TASK_SIZE + 8 * len(_MORE),
        {**_TASK, **{name: _TASK_SIZE + 8 * n for n, name in enumerate(_MORE)}},
    ),
    "cred": (
        0x80,
        {
            **{name: 8 + 4 * n for n, name in enumerate(_IDS)},
            **{name: 0x30 + 8 * n for n, name in enumerate((*_SETS, *_POINTERS))},
        },
    ),
    "seccomp": (0x10, {"mode": 0}),
    "group_info": (0x10, {"ngroups": 4, "gid": 8}),
    "ns_common": (0x20, {"inum": 0x10}),
    **{name: (0x100, {"ns": 0x60}) for name in _NAMESPACES},
    "uts_namespace": (0x100, {"name": 8, "ns": 0xC0}),
    "pid_namespace": (0x80, {"idr": 8, "ns": 0x40}),
    "new_utsname": (0x90, {"nodename": 0x20}),
    "nsproxy": (0x48, {name: 8 + 8 * n for n, name in enumerate((*_KINDS, *_LATER_KINDS))}),
    "pid": (0x80, {"level": 4, "tasks": 0x10, "numbers": 0x60}),
    "upid": (0x10, {"nr": 0, "ns": 8}),
    "css_set": (0x40, {"cgrp_links": 0x18}),
    "cgrp_cset_link": (0x30, {"cgrp": 0, "cset_link": 0x10, "cgrp_link": 0x20}),
    "cgroup": (0x80, {"self": 0, "kn": 0x40, "root": 0x50}),
    "cgroup_subsys_state": (0x40, {"flags": 0x20}),
    "cgroup_root": (0x80, {"subsys_mask": 8, "hierarchy_id": 0xC, "name": 0x30}),
    "cgroup_subsys": (0x40, {"legacy_name": 0x18}),
    "kernfs_node": (0x40, {"__parent": 8, "name": 0x10, "id": 0x28}),
}


def without(type_name: str, *members: str) -> Layouts:
    """These are the layouts of a kernel that lacks members of a struct."""
    size, known = CONFINED[type_name]
    return {**CONFINED, type_name: (size, {k: at for k, at in known.items() if k not in members})}


class KernelConfinement(KernelMemory):
    """This is kernel memory whose processes have credentials, namespaces and cgroups."""

    def __init__(self, *, mapped: bool = True, layouts: Layouts = CONFINED) -> None:
        super().__init__(mapped=mapped, layouts=layouts)
        self.controllers = self.allocate_bytes(8 * 32)
        self.user = self.numbered("user_namespace", 70)
        self.no_groups = self.groups()
        self.symbols.addresses["cgroup_subsys"] = self.controllers

    def put(self, at: int, type_name: str, name: str, value: int) -> None:
        self.u64(at + self.member(type_name, name), value)

    def numbered(self, type_name: str, number: int) -> int:
        """This makes a namespace."""
        made = self.allocate(type_name)
        place = self.member(type_name, "ns") + self.member("ns_common", "inum")
        self.u32(made + place, number)
        return made

    def groups(self, *ids: int) -> int:
        made = self.allocate_bytes(8 + 4 * len(ids))
        self.write(made + self.member("group_info", "ngroups"), struct.pack("<I", len(ids)))
        self.write(made + self.member("group_info", "gid"), struct.pack(f"<{len(ids)}I", *ids))
        return made

    def credentials(self, uid: int) -> int:
        """This makes a ``struct cred``, all of whose users are one."""
        made = self.allocate("cred")
        for name in ("uid", "euid", "suid", "fsuid"):
            self.u32(made + self.member("cred", name), uid)
        self.put(made, "cred", "user_ns", self.user)
        self.put(made, "cred", "group_info", self.no_groups)
        return made

    def trust(self, task: int, cred: int) -> None:
        """This gives credentials to a task."""
        self.set_u64(task, "real_cred", cred)
        self.set_u64(task, "cred", cred)

    def number_in(self, task: int, *numbers: tuple[int, int]) -> None:
        """This gives a task its ``struct pid``, with (number, namespace) for each level."""
        made = self.allocate_bytes(0x60 + 0x10 * len(numbers))
        self.u32(made + self.member("pid", "level"), len(numbers) - 1)
        for level, (number, namespace) in enumerate(numbers):
            at = made + self.member("pid", "numbers") + 0x10 * level
            self.u32(at + self.member("upid", "nr"), number)
            self.u64(at + self.member("upid", "ns"), namespace)
        self.set_u64(task, "thread_pid", made)

    # ------------------------------------------------------------------------------------ cgroups

    def hierarchy(self, number: int, *, mask: int = 0, name: bytes = b"") -> int:
        made = self.allocate("cgroup_root")
        self.u32(made + self.member("cgroup_root", "hierarchy_id"), number)
        self.u32(made + self.member("cgroup_root", "subsys_mask"), mask)
        self.write(made + self.member("cgroup_root", "name"), name + b"\0")
        return made

    def controller(self, bit: int, name: bytes) -> None:
        made = self.allocate("cgroup_subsys")
        self.put(made, "cgroup_subsys", "legacy_name", self.text(name))
        self.u64(self.controllers + 8 * bit, made)

    def text(self, text: bytes) -> int:
        made = self.allocate_bytes(len(text) + 1)
        self.write(made, text + b"\0")
        return made

    def cgroup(self, root: int, path: str, *, flags: int = ONLINE) -> int:
        """This makes a cgroup, and the nodes above it."""
        node = self.allocate("kernfs_node")
        for name in filter(None, path.split("/")):
            below = self.allocate("kernfs_node")
            self.put(below, "kernfs_node", "__parent", node)
            self.put(below, "kernfs_node", "name", self.text(name.encode()))
            self.put(below, "kernfs_node", "id", below)
            node = below
        made = self.allocate("cgroup")
        self.put(made, "cgroup", "kn", node)
        self.put(made, "cgroup", "root", root)
        self.u32(made + self.member("cgroup_subsys_state", "flags"), flags)
        return made

    def css_set(self, *cgroups: int) -> int:
        made = self.allocate("css_set")
        head = made + self.member("css_set", "cgrp_links")
        self.make_list(head)
        for cgroup in cgroups:
            link = self.allocate("cgrp_cset_link")
            self.put(link, "cgrp_cset_link", "cgrp", cgroup)
            self.add_tail(link + self.member("cgrp_cset_link", "cgrp_link"), head)
        return made
