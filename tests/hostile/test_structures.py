"""Lists, tables and notes that are made to keep a reader busy."""

import struct

import pytest

from qvmi.errors import QvmiError
from qvmi.semantics.linux.image.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.tasks.pid import PidTable
from qvmi.semantics.linux.tasks.task import PID_MAX_LIMIT, Tasks
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.kernel_memory import DIRECT_MAP, LAYOUTS, KernelMemory
from tests.synthetic.ram import Ram

MIB = 1 << 20
TASK_SIZE = LAYOUTS["task_struct"][0]


def many_tasks(memory: KernelMemory, count: int) -> list[int]:
    """So many tasks with one parent and one cred, on a list that leads back as it should."""
    model = memory.add_process(1)
    image = memory.ram.read(model + memory.to_pa, TASK_SIZE)  # type: ignore[arg-type] # a plain address
    first = memory.free
    tasks = [first + number * TASK_SIZE for number in range(count)]
    link, pid, tgid = (memory.member("task_struct", name) for name in ("tasks", "pid", "tgid"))
    for number, task in enumerate(tasks):
        data = bytearray(image)
        struct.pack_into("<QQ", data, link, task + TASK_SIZE + link, task - TASK_SIZE + link)
        struct.pack_into("<I", data, pid, number + 2)
        struct.pack_into("<I", data, tgid, number + 2)
        memory.write(task, bytes(data))
    memory.u64(memory.tasks_link(tasks[0]) + 8, memory.tasks_link(model))
    memory.u64(memory.tasks_link(model), memory.tasks_link(tasks[0]))
    memory.u64(memory.tasks_link(tasks[-1]), memory.tasks_head)
    memory.u64(memory.tasks_head + 8, memory.tasks_link(tasks[-1]))
    return tasks


def tasks_of(memory: KernelMemory) -> Tasks:
    return Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)


def test_more_tasks_than_ram_can_hold_stacks_for_are_cut_off() -> None:
    memory = KernelMemory(64 * MIB)
    many_tasks(memory, 120_000)
    with cpu_seconds(30), peak_mib(60):
        walk = tasks_of(memory).processes()
    assert len(walk.rows) == 64 * MIB // (16 << 10) + 1
    assert len(walk.gaps) == 1


@pytest.mark.parametrize("target", [0, 2000, 3998])
def test_a_long_list_that_turns_back_into_itself_ends(target: int) -> None:
    memory = KernelMemory(64 * MIB)
    tasks = many_tasks(memory, 4000)
    memory.u64(memory.tasks_link(tasks[3999]), memory.tasks_link(tasks[target]))
    with cpu_seconds(30):
        walk = tasks_of(memory).processes()
    assert len(walk.rows) == 4001
    assert walk.gaps


def test_a_long_list_that_turns_back_consistently_ends() -> None:
    memory = KernelMemory(64 * MIB)
    tasks = many_tasks(memory, 4000)
    memory.u64(memory.tasks_link(tasks[3999]), memory.tasks_link(tasks[0]))
    memory.u64(memory.tasks_link(tasks[0]) + 8, memory.tasks_link(tasks[3999]))
    with cpu_seconds(30):
        walk = tasks_of(memory).processes()
    assert walk.gaps


def test_a_long_list_whose_every_entry_leads_back_wrongly_ends() -> None:
    memory = KernelMemory(64 * MIB)
    tasks = many_tasks(memory, 4000)
    for task in tasks:
        memory.u64(memory.tasks_link(task) + 8, DIRECT_MAP + 8)
    with cpu_seconds(60), peak_mib(60):
        walk = tasks_of(memory).processes()
    assert len(walk.gaps) <= 1001


def test_thread_lists_shared_by_all_processes_are_walked_no_more_than_ram_can_hold() -> None:
    memory = KernelMemory(64 * MIB)
    tasks = many_tasks(memory, 3000)
    tgid = memory.member("task_struct", "tgid")
    pid = memory.member("task_struct", "pid")
    for task in tasks:  # all lead the group of the first one, whose list holds them all
        memory.u32(task + tgid, 1)
        memory.u32(task + pid, 1)
    signal = memory.get(memory.tasks_head - memory.member("task_struct", "tasks")) or memory.get(
        tasks[0] + memory.member("task_struct", "signal")
    )
    head = signal + memory.member("signal_struct", "thread_head")
    memory.make_list(head)
    for task in tasks:
        memory.u64(task + memory.member("task_struct", "signal"), signal)
        memory.add_tail(task + memory.member("task_struct", "thread_node"), head)
    with cpu_seconds(30), peak_mib(60):
        walk = tasks_of(memory).threads()
    assert any("more than" in gap.reason for gap in walk.gaps)


def test_a_table_of_ids_that_multiplies_at_every_level_is_given_up() -> None:
    memory = KernelMemory(64 * MIB)
    task = memory.add_process(PID_MAX_LIMIT - 1)
    memory.write_idr()
    slots = memory.member("xa_node", "slots")
    entry = memory.get(memory.idr_root)
    while entry & 3 == 2:
        node = entry - 2
        entry = next(filter(None, (memory.get(node + slots + 8 * n) for n in range(64))))
        for number in range(64):
            memory.u64(node + slots + 8 * number, entry)
    with cpu_seconds(60), peak_mib(60):
        walk = PidTable(memory.space, memory.symbols, tasks_of(memory)).processes()
    assert set(walk.rows) <= {task}
    assert 0 < len(walk.gaps) <= 1002


def test_a_table_of_ids_all_of_which_lead_to_no_process_is_walked_once() -> None:
    memory = KernelMemory(64 * MIB)
    for number in range(1, 2000):
        memory.add_id(number, 0)
    memory.write_idr()
    with cpu_seconds(30):
        walk = PidTable(memory.space, memory.symbols, tasks_of(memory)).processes()
    assert (walk.rows, walk.gaps) == ({}, [])


def test_more_modules_than_there_is_room_for_are_cut_off() -> None:
    memory = KernelMemory(64 * MIB)
    for _ in range(10_050):
        memory.add_module(b"m", base=0xFFFF_FFFF_C000_0000, sizes=[0x1000])
    with cpu_seconds(30), peak_mib(60):
        walk = Modules(memory.space, memory.symbols).modules()
    assert len(walk.rows) == 10_000
    assert len(walk.gaps) == 1


@pytest.mark.parametrize("mapped", [True, False])
def test_ram_full_of_forged_notes_is_searched_within_bounds(*, mapped: bool) -> None:
    ram = Ram(32 * MIB, mapped=mapped)
    text = b"OSRELEASE=x\nSYMBOL(_stext)=" + b"f" * 15000 + b"\n"
    note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
    small = struct.pack("<III", 11, 16 << 10, 0) + b"VMCOREINFO\0\0OSRELEASE=x\n"
    ram.write(0, note + small * ((31 * MIB) // len(small)))
    with cpu_seconds(60), peak_mib(80):
        assert sum(1 for _ in find_vmcoreinfo(ram)) <= 4096


def test_a_note_of_one_endless_line_is_read_within_bounds() -> None:
    text = b"KERNELOFFSET=" + b"1" * (1 << 20)
    with cpu_seconds(10), peak_mib(1):
        info = parse_vmcoreinfo(text)
    assert info.kaslr_offset is None


def test_layouts_that_claim_the_impossible_raise_only_ours() -> None:
    memory = KernelMemory()
    memory.add_process(1)
    for lie in (0, 8, 0x1F0, 1 << 16, 1 << 28, (1 << 29) - 1):
        for name, (size, members) in LAYOUTS.items():
            for member in members:
                memory.symbols.layouts = {**LAYOUTS, name: (size, {**members, member: lie})}
                try:
                    tasks = tasks_of(memory)
                    tasks.processes()
                    tasks.threads()
                    PidTable(memory.space, memory.symbols, tasks).processes()
                    Modules(memory.space, memory.symbols).modules()
                except QvmiError:
                    continue
