"""Tasks of a kernel made by hand, some of whose structures cannot be looked at."""

from collections.abc import Callable

import pytest

from qvmi.errors import LayoutNotFound
from qvmi.semantics.guest_os import TaskSighting, TaskView
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.percpu import PerCpu
from qvmi.semantics.linux.tasks.pid import PidNamespaces, PidTable
from qvmi.semantics.linux.tasks.run_queue import RunQueues
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.linux.tasks.task_family import TaskFamily
from qvmi.semantics.linux.tasks.task_life import LivingTasks
from qvmi.semantics.linux.tasks.task_sightings import TaskSightings
from qvmi.semantics.linux.tasks.task_slab import TaskSlabs
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory
from tests.synthetic.symbols import Layouts

_SIZE, _TASK = LAYOUTS["task_struct"]
WITH_QUEUES: Layouts = {
    **LAYOUTS,
    "task_struct": (
        _SIZE + 0x80,
        {
            **_TASK,
            **{
                name: _SIZE + 0x10 * number
                for number, name in enumerate(
                    ("children", "sibling", "se", "usage", "sighand", "thread_pid")
                )
            },
        },
    ),
    "sched_entity": (0x10, {"group_node": 0}),
    "rq": (0x40, {"curr": 0, "idle": 8, "stop": 0x10, "cfs_tasks": 0x18}),
    "pid": (0x80, {**LAYOUTS["pid"][1], "level": 0x78}),
    "upid": (0x10, {**LAYOUTS["upid"][1], "ns": 8}),
}


class Cpu:
    """This is a kernel for one CPU, which runs process 7 and is idle in its first task."""

    def __init__(self) -> None:
        self.memory = memory = KernelMemory(layouts=WITH_QUEUES)
        memory.make_list(memory.init_task + memory.member("task_struct", "children"))
        task = memory.add_process(7)
        own = memory.idr[7] + memory.member("pid", "tasks")
        memory.u64(own, task + memory.member("task_struct", "pid_links"))
        memory.write_idr()
        queue = memory.allocate("rq")
        memory.u64(queue, task)
        memory.u64(queue + 8, memory.init_task)
        memory.make_list(queue + 0x18)
        memory.symbols.addresses |= {
            "__per_cpu_start": queue,
            "__per_cpu_end": queue + 0x40,
            "runqueues": queue,
        }

    def look(self, slabs: Callable[[], TaskSlabs] | None = None) -> ListWalk[TaskSighting]:
        space, symbols = self.memory.space, self.memory.symbols
        tasks = Tasks(space, symbols, ram_size=1 << 20)
        return TaskSightings(
            PidTable(space, symbols, tasks),
            PidNamespaces(space, symbols, tasks),
            TaskFamily(space, symbols, tasks),
            RunQueues(space, symbols, PerCpu(space, symbols)),
            slabs or no_slabs,
            LivingTasks(space, symbols, tasks),
        ).walk()


def no_slabs() -> TaskSlabs:
    raise LayoutNotFound("slab")


def views(found: ListWalk[TaskSighting]) -> list[TaskView]:
    return [row.view for row in found.rows.values() if row.pid == 7]


def structures(found: ListWalk[TaskSighting]) -> list[str]:
    return [gap.structure for gap in found.gaps]


def test_a_kernel_that_does_not_tell_of_its_slabs_has_a_gap_there() -> None:
    found = Cpu().look()
    assert TaskView.RUNNING in views(found)
    assert structures(found) == [TaskView.SLAB]


@pytest.mark.parametrize("count", [0, 0xFFFF_FFFF])
def test_cpus_that_cannot_be_told_are_gaps_and_hide_no_other_structure(count: int) -> None:
    cpu = Cpu()
    memory = cpu.memory
    number = memory.allocate_bytes(8)
    memory.u32(number, count)
    memory.symbols.addresses |= {"nr_cpu_ids": number, "__per_cpu_offset": number}
    found = cpu.look()
    assert TaskView.PIDS in views(found)
    expected = {TaskView.RUNNABLE, TaskView.RUNNING, TaskView.LOADED, TaskView.SLAB}
    assert set(structures(found)) == expected


def test_run_queues_that_are_not_told_are_gaps() -> None:
    cpu = Cpu()
    del cpu.memory.symbols.addresses["runqueues"]
    assert TaskView.RUNNING in structures(cpu.look())
