"""Structures of a running Linux kernel, put into RAM one by one.

References: Linux include/linux/sched.h, cred.h, sched/signal.h, pid.h, xarray.h, module.h and
list.h. The offsets are made up: no kernel has these, so that none can be hard-coded.
"""

import struct

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.memory.address_space import AddressSpace, LinearRange
from tests.synthetic.ram import Ram
from tests.synthetic.symbols import KnownSymbols, Layouts

__all__ = ["DIRECT_MAP", "LAYOUTS", "LIST_POISON2", "OLD_LAYOUTS", "KernelMemory"]

DIRECT_MAP = 0xFFFF_8880_0000_0000
LIST_POISON1 = 0xDEAD_0000_0000_0100
LIST_POISON2 = 0xDEAD_0000_0000_0122
PF_KTHREAD = 0x0020_0000
TASK_COMM_LEN = 16
MODULE_NAME_LEN = 56
PIDTYPE_TGID = 1
XA_CHUNK = 64

_TASK = {
    "__state": 0x18,
    "flags": 0x2C,
    "tasks": 0x80,
    "exit_state": 0x94,
    "pid": 0x98,
    "tgid": 0x9C,
    "real_parent": 0xA8,
    "pid_links": 0x120,
    "thread_node": 0x180,
    "start_boottime": 0x1A0,
    "mm": 0x1A8,
    "real_cred": 0x1B0,
    "comm": 0x1C0,
    "signal": 0x1E8,
}
LAYOUTS: Layouts = {
    "task_struct": (0x200, _TASK),
    "cred": (0x40, {"uid": 8, "gid": 12}),
    "signal_struct": (0x40, {"thread_head": 0x10}),
    "pid": (0x80, {"tasks": 0x10, "numbers": 0x60}),
    "upid": (16, {"nr": 0}),
    "pid_namespace": (0x80, {"idr": 8}),
    "idr": (0x18, {"idr_rt": 0}),
    "xarray": (0x10, {"xa_head": 8}),
    "xa_node": (0x28 + 8 * XA_CHUNK, {"shift": 0, "slots": 0x28}),
    "module": (0x300, {"state": 0, "list": 8, "name": 0x18, "mem": 0x80}),
    "module_memory": (0x30, {"base": 8, "size": 0x18}),
    "mm_struct": (0x80, {"pgd": 0x48}),
}
"""As since 6.4."""

_OLD_TASK = {name: at for name, at in _TASK.items() if name not in {"__state", "start_boottime"}}
OLD_LAYOUTS: Layouts = {
    **{name: layout for name, layout in LAYOUTS.items() if name != "module_memory"},
    "task_struct": (0x200, _OLD_TASK | {"state": 0x18, "real_start_time": 0x1A0}),
    "module": (
        0x300,
        {"state": 0, "list": 8, "name": 0x18, "core_layout": 0x90, "init_layout": 0xD0},
    ),
    "module_layout": (0x40, {"base": 0, "size": 8}),
}
"""With the names of 5.4: ``state``, ``real_start_time``, ``core_layout``."""


class KernelMemory:
    """This is a run of kernel memory with the first task and empty lists, and room for more.

    Args:
        size: of the run in bytes.
        mapped: whether the subject may read it in place.
        layouts: where the members lie.
        ram: where the run lies; None for RAM of its own.
        start: virtual address of the run.
        pa: physical address of the run.
    """

    def __init__(
        self,
        size: int = 1 << 20,
        *,
        mapped: bool = True,
        layouts: Layouts = LAYOUTS,
        ram: Ram | None = None,
        start: int = DIRECT_MAP,
        pa: int = 0,
    ) -> None:
        self.ram = ram or Ram(size, mapped=mapped)
        self.to_pa = pa - start
        self.layouts = layouts
        self.free = start + 0x1000
        linear = [LinearRange(Va(start), Va(start + size), Pa(pa))]
        self.space = AddressSpace(self.ram, Pa(0), geometry=X86_64_4_LEVEL, linear=linear)
        self.init_task = self.allocate("task_struct")
        self.init_pid_ns = self.allocate("pid_namespace")
        self.modules = self.allocate_bytes(16)
        self.idr: dict[int, int] = {}
        self.make_list(self.modules)
        self._fill_task(self.init_task, 0, name=b"swapper/0", parent=self.init_task)
        self.make_list(self.init_task + self.member("task_struct", "tasks"))
        self.symbols = KnownSymbols(
            layouts,
            {
                "init_task": self.init_task,
                "init_pid_ns": self.init_pid_ns,
                "modules": self.modules,
            },
        )

    # ------------------------------------------------------------------------------------ bytes

    def member(self, type_name: str, *names: str) -> int:
        members = self.layouts[type_name][1]
        return next(members[name] for name in names if name in members)

    def allocate(self, type_name: str) -> int:
        return self.allocate_bytes(self.layouts[type_name][0])

    def allocate_bytes(self, size: int) -> int:
        self.free += size + 63 & ~63
        return (self.free - size) & ~63

    def write(self, va: int, data: bytes) -> None:
        self.ram.write(va + self.to_pa, data)

    def u32(self, va: int, value: int) -> None:
        self.ram.write_u32(va + self.to_pa, value)

    def u64(self, va: int, value: int) -> None:
        self.ram.write_u64(va + self.to_pa, value)

    def get(self, va: int) -> int:
        return self.ram.read_u64(va + self.to_pa)

    # ------------------------------------------------------------------------------------ lists

    def make_list(self, head: int) -> None:
        self.u64(head, head)
        self.u64(head + 8, head)

    def add_tail(self, link: int, head: int) -> None:
        """Corresponds to ``list_add_tail_rcu``."""
        last = self.get(head + 8)
        self.u64(link, head)
        self.u64(link + 8, last)
        self.u64(last, link)
        self.u64(head + 8, link)

    def delete(self, link: int) -> None:
        """Corresponds to ``list_del_rcu``: the entry keeps its ``next``."""
        following, before = self.get(link), self.get(link + 8)
        self.u64(following + 8, before)
        self.u64(before, following)
        self.u64(link + 8, LIST_POISON2)

    # ------------------------------------------------------------------------------------ tasks

    @property
    def tasks_head(self) -> int:
        return self.init_task + self.member("task_struct", "tasks")

    def tasks_link(self, task: int) -> int:
        return task + self.member("task_struct", "tasks")

    def add_process(self, pid: int, name: bytes = b"sh", **changes: int) -> int:
        """This makes a process, puts it on the task list, and gives it one thread and its id."""
        task = self.allocate("task_struct")
        self._fill_task(task, pid, name=name, **changes)
        signal = self.allocate("signal_struct")
        self.u64(task + self.member("task_struct", "signal"), signal)
        head = signal + self.member("signal_struct", "thread_head")
        self.make_list(head)
        self.add_tail(task + self.member("task_struct", "thread_node"), head)
        self.add_tail(self.tasks_link(task), self.tasks_head)
        self.add_id(pid, task)
        return task

    def add_thread(self, leader: int, pid: int, tgid: int, name: bytes = b"worker") -> int:
        task = self.allocate("task_struct")
        self._fill_task(task, pid, name=name)
        self.set_u32(task, "tgid", tgid)
        signal = self.get(leader + self.member("task_struct", "signal"))
        self.u64(task + self.member("task_struct", "signal"), signal)
        head = signal + self.member("signal_struct", "thread_head")
        self.add_tail(task + self.member("task_struct", "thread_node"), head)
        self.add_id(pid, 0)
        return task

    def set_u32(self, task: int, name: str, value: int) -> None:
        self.u32(task + self.member("task_struct", name), value)

    def set_u64(self, task: int, name: str, value: int) -> None:
        self.u64(task + self.member("task_struct", name), value)

    def _fill_task(  # noqa: PLR0913 - what a task has
        self,
        task: int,
        pid: int,
        *,
        name: bytes,
        parent: int | None = None,
        uid: int = 0,
        gid: int = 0,
        state: int = 1,
        exit_state: int = 0,
        flags: int = 0,
        start_ns: int = 0,
    ) -> None:
        cred = self.allocate("cred")
        self.u32(cred + self.member("cred", "uid"), uid)
        self.u32(cred + self.member("cred", "gid"), gid)
        at = self.layouts["task_struct"][1]
        self.u32(task + self.member("task_struct", "__state", "state"), state)
        self.u32(task + at["exit_state"], exit_state)
        self.u32(task + at["flags"], flags)
        self.u32(task + at["pid"], pid)
        self.u32(task + at["tgid"], pid)
        self.u64(task + at["real_parent"], self.init_task if parent is None else parent)
        self.u64(task + at["real_cred"], cred)
        self.u64(task + self.member("task_struct", "start_boottime", "real_start_time"), start_ns)
        self.write(task + at["comm"], name.ljust(TASK_COMM_LEN, b"\0"))

    # -------------------------------------------------------------------------------------- ids

    def add_id(self, number: int, leader: int) -> int:
        """This makes a ``struct pid``, for :meth:`write_idr`; ``leader`` 0 for none."""
        pid = self.allocate("pid")
        self.u32(pid + self.member("pid", "numbers") + self.member("upid", "nr"), number)
        link = leader + self.member("task_struct", "pid_links") + 16 * PIDTYPE_TGID if leader else 0
        self.u64(pid + self.member("pid", "tasks") + 8 * PIDTYPE_TGID, link)
        self.idr[number] = pid
        return pid

    @property
    def idr_root(self) -> int:
        offsets = (("pid_namespace", "idr"), ("idr", "idr_rt"), ("xarray", "xa_head"))
        return self.init_pid_ns + sum(self.member(*path) for path in offsets)

    def write_idr(self) -> None:
        """This writes the table of ids with as many levels as the largest one needs."""
        self.u64(self.idr_root, self._idr_node(self.idr, self._idr_shift()) if self.idr else 0)

    def _idr_shift(self) -> int:
        shift = 0
        while max(self.idr) >> (shift + 6):
            shift += 6
        return shift

    def _idr_node(self, entries: dict[int, int], shift: int) -> int:
        node = self.allocate("xa_node")
        self.write(node + self.member("xa_node", "shift"), bytes([shift]))
        slots = node + self.member("xa_node", "slots")
        for slot in {number >> shift & (XA_CHUNK - 1) for number in entries}:
            below = {n: pid for n, pid in entries.items() if n >> shift & (XA_CHUNK - 1) == slot}
            entry = self._idr_node(below, shift - 6) if shift else next(iter(below.values()))
            self.u64(slots + 8 * slot, entry)
        return node | 2

    # ---------------------------------------------------------------------------------- modules

    def add_module(self, name: bytes, *, base: int, sizes: list[int], state: int = 0) -> int:
        """This makes a module and puts it first, as the kernel does.

        Args:
            name: of the module.
            base: where its text lies.
            sizes: of its parts: text, data and so on; before 6.4 of its core and init parts.
            state: ``enum module_state``.
        """
        module = self.allocate("module")
        self.u32(module + self.member("module", "state"), state)
        self.write(module + self.member("module", "name"), name.ljust(MODULE_NAME_LEN, b"\0"))
        for number, (part, size) in enumerate(zip(self._module_parts(), sizes, strict=False)):
            at_base, at_size = part
            self.u64(module + at_base, base + 0x10_0000 * number)
            self.u32(module + at_size, size)
        link = module + self.member("module", "list")
        first = self.get(self.modules)
        self.write(link, struct.pack("<QQ", first, self.modules))
        self.u64(first + 8, link)
        self.u64(self.modules, link)
        return module

    def _module_parts(self) -> list[tuple[int, int]]:
        """These are the offsets of base and size of each part."""
        if "module_memory" in self.layouts:
            stride, within = self.layouts["module_memory"]
            start = self.member("module", "mem")
            return [
                (start + n * stride + within["base"], start + n * stride + within["size"])
                for n in range(7)
            ]
        within = self.layouts["module_layout"][1]
        parts = (self.member("module", "core_layout"), self.member("module", "init_layout"))
        return [(part + within["base"], part + within["size"]) for part in parts]
