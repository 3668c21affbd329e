"""Mounts of a kernel made by hand that come and go, while it does not always let itself be looked at."""

from qvmi.errors import MemoryFault
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.events.mount_events import MountEvents
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.events import GuestEvent, Mounted, NotSeen, Unmounted
from qvmi.view import Provenance, Taken, View
from tests.synthetic.kernel_files import KernelFiles


class Watched:
    """This is a kernel with process 7, the only one in its namespace, whose mounts are watched."""

    def __init__(self) -> None:
        self.memory = memory = KernelFiles(mapped=False)
        self.task = memory.add_process(7)
        memory.enter(self.task, memory.namespace([memory.root_mount]))
        tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
        paths = Paths(memory.space, memory.symbols)
        mounts = Mounts(memory.space, memory.symbols, tasks=tasks, paths=paths)
        self.part = MountEvents(mounts, paths, tasks, lambda _: True)
        self.sink = EventSink(View((), memory.ram, Provenance(Taken.LIVE, 0.0)))
        self.part.begin(self.sink)

    def mount_more(self) -> None:
        """This mounts something on a folder, which counts ``mount_lock`` up as each change does."""
        memory = self.memory
        on = (memory.root_mount, memory.dentry(b"mnt", memory.root))
        mount = memory.mount(memory.dentry(b"/"), on=on, number=2)
        memory.enter(self.task, memory.namespace([memory.root_mount, mount]))
        self.count_change()

    def count_change(self) -> None:
        lock = self.memory.symbols.addresses["mount_lock"]
        self.memory.u32(lock, self.memory.get(lock) + 2)

    def look(self) -> list[type[GuestEvent]]:
        self.part.rescan(self.sink)
        return [type(event) for event in self.sink.taken()]


def test_what_is_mounted_is_told_once() -> None:
    watched = Watched()
    watched.mount_more()
    assert [watched.look(), watched.look()] == [[Mounted], []]


def test_a_change_is_told_however_many_looks_fail_before_one_succeeds() -> None:
    watched = Watched()
    watched.mount_more()
    head = watched.memory.tasks_head + watched.memory.to_pa

    def fail(pa: int) -> None:
        if pa == head:
            raise MemoryFault(pa, 8, why="not now")

    watched.memory.ram.before_read = fail
    assert [watched.look() for _ in range(5)] == [[NotSeen], [], [], [], []]
    watched.memory.ram.before_read = None
    assert watched.look() == [Mounted]


def test_mounts_of_a_process_that_a_broken_list_hides_are_not_taken_for_unmounted() -> None:
    watched = Watched()
    memory = watched.memory
    first = memory.tasks_head
    for link in (first, first + 8):
        memory.u64(link, 0x4141_4141_4141_4141)
    watched.count_change()
    told = watched.look()
    assert NotSeen in told
    assert Unmounted not in told
