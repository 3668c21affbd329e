"""Processes and threads over structures written by hand."""

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, LayoutNotFound, MemoryFault, SymbolNotFound, WalkFailed
from qvmi.semantics.guest_os import Process, Thread
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.tasks.task import PID_MAX_LIMIT, Tasks, state_letter
from tests.synthetic.kernel_memory import LAYOUTS, OLD_LAYOUTS, PF_KTHREAD, KernelMemory

NOWHERE = 0x1234_5678


def tasks_of(memory: KernelMemory) -> Tasks:
    return Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)


def pids(memory: KernelMemory) -> list[int]:
    return [row.pid for row in tasks_of(memory).processes().rows.values()]


# ---------------------------------------------------------------------------------------- state letters


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"),
    [
        # include/linux/sched.h: TASK_RUNNING 0, TASK_INTERRUPTIBLE 1, TASK_UNINTERRUPTIBLE 2,
        # __TASK_STOPPED 4, __TASK_TRACED 8, EXIT_DEAD 0x10, EXIT_ZOMBIE 0x20, TASK_PARKED 0x40
        (0, 0, "R"),
        (1, 0, "S"),
        (2, 0, "D"),
        (4, 0, "T"),
        (8, 0, "t"),
        (0x80, 0x10, "X"),
        (0x80, 0x20, "Z"),
        (0x40, 0, "P"),
        # TASK_DEAD, TASK_WAKING and TASK_NEW have no letter of their own
        (0x80, 0, "R"),
        (0x200, 0, "R"),
        (0x800, 0, "R"),
        # TASK_KILLABLE and TASK_STOPPED with TASK_WAKEKILL 0x100
        (0x102, 0, "D"),
        (0x104, 0, "T"),
        # TASK_IDLE is TASK_UNINTERRUPTIBLE | TASK_NOLOAD 0x400; with TASK_FREEZABLE 0x2000
        (0x402, 0, "I"),
        (0x2402, 0, "I"),
        (0x2001, 0, "S"),
        (0x400, 0, "R"),
        # TASK_RTLOCK_WAIT and TASK_FROZEN are shown as D, whatever else is set
        (0x1000, 0, "D"),
        (0x8000, 0, "D"),
        (0x9402, 0, "D"),
        (0x5401, 0, "D"),
        # a zombie that was traced, and all bits at once
        (8, 0x20, "Z"),
        (0xFFFF_FFFF, 0xFFFF_FFFF, "D"),
        (0x0FFF, 0x7F, "I"),
    ],
)
def test_a_task_has_the_letter_that_ps_shows(state: int, exit_state: int, letter: str) -> None:
    assert state_letter(state, exit_state) == letter


# -------------------------------------------------------------------------------------------- processes


def test_a_process_has_all_its_fields() -> None:
    memory = KernelMemory()
    parent = memory.add_process(1, b"init")
    task = memory.add_process(
        4711, b"sleepy", parent=parent, uid=1000, gid=100, state=2, start_ns=12_345_000_000
    )
    assert tasks_of(memory).processes().rows[task] == Process(
        pid=4711,
        tgid=4711,
        ppid=1,
        uid=1000,
        gid=100,
        state="D",
        name="sleepy",
        address=Va(task),
        kernel_thread=False,
        start_time_s=12.345,
    )


@pytest.mark.parametrize("layouts", [LAYOUTS, OLD_LAYOUTS], ids=["now", "before 5.5"])
def test_members_are_found_by_either_name(layouts: dict[str, tuple[int, dict[str, int]]]) -> None:
    memory = KernelMemory(layouts=layouts)
    memory.add_process(1, b"init", state=1, start_ns=10**9)
    (row,) = tasks_of(memory).processes().rows.values()
    assert (row.state, row.start_time_s) == ("S", 1.0)


def test_a_kernel_thread_is_told_by_its_flag() -> None:
    memory = KernelMemory()
    memory.add_process(2, b"kthreadd", flags=PF_KTHREAD | 0x40)
    memory.add_process(3, b"user", flags=0x40)
    rows = tasks_of(memory).processes().rows.values()
    assert [row.kernel_thread for row in rows] == [True, False]


def test_processes_come_in_the_order_of_the_list() -> None:
    memory = KernelMemory()
    for pid in (1, 2, 900, 7):
        memory.add_process(pid)
    assert pids(memory) == [1, 2, 900, 7]


def test_a_list_of_the_first_task_alone_is_empty() -> None:
    walk = tasks_of(KernelMemory()).processes()
    assert (walk.rows, walk.gaps) == ({}, [])


def test_a_parent_behind_its_child_is_found_too() -> None:
    memory = KernelMemory()
    child = memory.add_process(900)
    memory.set_u64(child, "real_parent", memory.add_process(7))
    assert tasks_of(memory).processes().rows[child].ppid == 7


def test_the_parent_is_told_by_its_thread_groups_id() -> None:
    memory = KernelMemory()
    leader = memory.add_process(40)
    thread = memory.add_thread(leader, 41, 40)
    child = memory.add_process(50, parent=thread)
    assert tasks_of(memory).processes().rows[child].ppid == 40


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        (b"a b[c]", "a b[c]"),
        (b"", ""),
        (b"fifteen-letters", "fifteen-letters"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x1b[31mred", "\x1b[31mred"),
        ("täsk".encode(), "täsk"),
        (b"one\0two", "one"),
    ],
)
def test_a_name_is_decoded_once_and_escaped_only_where_it_is_no_text(
    comm: bytes, name: str
) -> None:
    memory = KernelMemory()
    memory.add_process(1, comm)
    assert [row.name for row in tasks_of(memory).processes().rows.values()] == [name]


# ------------------------------------------------------------------------------------ what cannot be a task


@pytest.mark.parametrize(
    ("member", "value", "why"),
    [
        ("tgid", 99, "no leader"),
        ("pid", 99, "no leader"),
    ],
)
def test_a_task_that_leads_no_group_is_a_gap(member: str, value: int, why: str) -> None:
    memory = KernelMemory()
    for pid in (1, 2, 3):
        memory.add_process(pid)
    task = memory.add_process(4)
    memory.add_process(5)
    memory.set_u32(task, member, value)
    walk = tasks_of(memory).processes()
    assert [row.pid for row in walk.rows.values()] == [1, 2, 3, 5]
    assert [gap.address for gap in walk.gaps] == [task]
    assert why in walk.gaps[0].reason


@pytest.mark.parametrize("pid", [PID_MAX_LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_a_pid_that_no_kernel_gives_is_a_gap(pid: int) -> None:
    memory = KernelMemory()
    memory.add_process(pid)
    walk = tasks_of(memory).processes()
    assert (walk.rows, len(walk.gaps)) == ({}, 1)


@pytest.mark.parametrize("member", ["real_parent", "real_cred"])
@pytest.mark.parametrize("target", [NOWHERE, 0, (1 << 64) - 1])
def test_a_task_whose_parent_or_credentials_cannot_be_read_is_a_gap(
    member: str, target: int
) -> None:
    memory = KernelMemory()
    task = memory.add_process(1)
    memory.add_process(2)
    memory.set_u64(task, member, target)
    walk = tasks_of(memory).processes()
    assert [row.pid for row in walk.rows.values()] == [2]
    assert [gap.address for gap in walk.gaps] == [task]


def test_a_name_without_an_end_is_a_gap() -> None:
    memory = KernelMemory()
    memory.add_process(1, b"x" * 16)
    assert len(tasks_of(memory).processes().gaps) == 1


def test_a_parent_with_an_impossible_pid_is_a_gap() -> None:
    memory = KernelMemory()
    child = memory.add_process(1)
    strange = memory.add_process(2)
    memory.delete(memory.tasks_link(strange))
    memory.set_u32(strange, "tgid", 1 << 30)
    memory.set_u64(child, "real_parent", strange)
    assert len(tasks_of(memory).processes().gaps) == 1


def test_credentials_replaced_during_the_look_are_looked_at_again() -> None:
    memory = KernelMemory(mapped=False)
    task = memory.add_process(1, uid=1000)
    other = memory.add_process(2, uid=0)
    memory.delete(memory.tasks_link(other))
    new_cred = memory.get(other + memory.member("task_struct", "real_cred"))
    reads = 0

    def before_read(_: int) -> None:
        nonlocal reads
        reads += 1
        if reads == 3:  # the head, the task, and now its credentials
            memory.set_u64(task, "real_cred", new_cred)

    memory.ram.before_read = before_read
    walk = tasks_of(memory).processes()
    assert [row.uid for row in walk.rows.values()] == [0]
    assert (walk.gaps, walk.retries) == ([], 1)


def test_a_task_list_without_a_head_fails() -> None:
    memory = KernelMemory()
    memory.symbols.addresses["init_task"] = NOWHERE
    with pytest.raises(WalkFailed, match="task_struct"):
        tasks_of(memory).processes()


def test_there_are_no_more_tasks_than_kernel_stacks_fit_into_ram() -> None:
    memory = KernelMemory(1 << 18)  # room for 16 stacks of 16 KiB
    for pid in range(1, 30):
        memory.add_process(pid)
    walk = tasks_of(memory).processes()
    assert len(walk.rows) == tasks_of(memory).limit == 17
    assert "more than 17 entries" in walk.gaps[0].reason


# ---------------------------------------------------------------------------------------------- one task


def test_one_process_is_told_by_its_address() -> None:
    memory = KernelMemory()
    task = memory.add_process(12, b"one")
    tasks = tasks_of(memory)
    assert tasks.process_at(Va(task)) == tasks.processes().rows[task]


def test_an_address_that_holds_no_process_is_implausible_or_faults() -> None:
    memory = KernelMemory()
    thread = memory.add_thread(memory.add_process(12), 13, 12)
    with pytest.raises(Implausible):
        tasks_of(memory).process_at(Va(thread))
    with pytest.raises(MemoryFault):
        tasks_of(memory).process_at(Va(NOWHERE))


# ----------------------------------------------------------------------------------------------- threads


def threaded() -> tuple[KernelMemory, int, int]:
    memory = KernelMemory()
    memory.add_process(1, b"init")
    leader = memory.add_process(40, b"server")
    worker = memory.add_thread(leader, 41, 40, b"worker")
    memory.set_u32(worker, "__state", 0x402)
    memory.set_u64(worker, "start_boottime", 2_500_000_000)
    return memory, leader, worker


def test_every_thread_of_every_process_is_told() -> None:
    memory, leader, worker = threaded()
    walk = tasks_of(memory).threads()
    assert [(row.pid, row.tgid, row.name) for row in walk.rows.values()] == [
        (1, 1, "init"),
        (40, 40, "server"),
        (41, 40, "worker"),
    ]
    assert walk.rows[worker] == Thread(41, 40, "I", "worker", Va(worker), 2.5)
    assert leader in walk.rows
    assert walk.gaps == []


def test_a_thread_of_another_group_on_the_list_is_a_gap() -> None:
    memory, _, worker = threaded()
    memory.set_u32(worker, "tgid", 77)
    walk = tasks_of(memory).threads()
    assert [row.pid for row in walk.rows.values()] == [1, 40]
    assert [gap.address for gap in walk.gaps] == [worker]


@pytest.mark.parametrize("signal", [NOWHERE, 0, (1 << 64) - 1])
def test_a_process_whose_thread_list_cannot_be_read_is_a_gap_and_the_others_are_told(
    signal: int,
) -> None:
    memory, leader, _ = threaded()
    memory.set_u64(leader, "signal", signal)
    memory.add_process(50)
    walk = tasks_of(memory).threads()
    assert [row.pid for row in walk.rows.values()] == [1, 50]
    assert [(gap.structure, gap.address) for gap in walk.gaps] == [("task_struct.signal", leader)]


def test_a_process_that_ended_meanwhile_has_neither_threads_nor_gaps() -> None:
    memory, leader, _ = threaded()
    tasks = tasks_of(memory)
    processes = tasks.processes()
    memory.set_u64(leader, "signal", NOWHERE)
    memory.set_u64(leader, "start_boottime", 99)  # another process has its memory by now
    walk = tasks._threads_of(leader, processes.rows[leader], 10)  # noqa: SLF001 - between two walks
    assert (walk.rows, walk.gaps, walk.retries) == ({}, [], 1)


@pytest.mark.parametrize("before", [0xDEAD_0000_0000_0122, None], ids=["poison", "stale"])
def test_a_process_that_left_the_list_meanwhile_has_neither_threads_nor_gaps(
    before: int | None,
) -> None:
    memory, leader, _ = threaded()
    tasks = tasks_of(memory)
    processes = tasks.processes()
    memory.set_u64(leader, "signal", NOWHERE)
    links = leader + memory.member("task_struct", "tasks")
    memory.u64(links + 8, before or links)  # freed memory keeps the rest of what it held
    walk = tasks._threads_of(leader, processes.rows[leader], 10)  # noqa: SLF001 - between two walks
    assert (walk.rows, walk.gaps, walk.retries) == ({}, [], 1)


def test_a_process_that_only_changed_its_state_meanwhile_keeps_its_gap() -> None:
    memory, leader, _ = threaded()
    tasks = tasks_of(memory)
    processes = tasks.processes()
    memory.set_u64(leader, "signal", NOWHERE)
    memory.set_u32(leader, "__state", 0)
    walk = tasks._threads_of(leader, processes.rows[leader], 10)  # noqa: SLF001 - between two walks
    assert len(walk.gaps) == 1


def test_gaps_among_processes_are_gaps_among_threads() -> None:
    memory, leader, _ = threaded()
    memory.set_u64(leader, "real_cred", NOWHERE)
    assert len(tasks_of(memory).threads().gaps) == 1


# ---------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", ["init_task"])
def test_a_kernel_without_a_first_task_is_said_so(name: str) -> None:
    memory = KernelMemory()
    del memory.symbols.addresses[name]
    with pytest.raises(SymbolNotFound, match=name):
        tasks_of(memory)


@pytest.mark.parametrize("member", sorted(set(LAYOUTS["task_struct"][1]) - {"pid_links", "mm"}))
def test_a_missing_member_is_named(member: str) -> None:
    members = {name: at for name, at in LAYOUTS["task_struct"][1].items() if name != member}
    memory = KernelMemory()
    memory.symbols.layouts = {**LAYOUTS, "task_struct": (0x200, members)}
    with pytest.raises(LayoutNotFound, match=member):
        tasks_of(memory)


@pytest.mark.parametrize(
    "lie", [{"pid": 0x9C}, {"comm": 0x1AC}, {"tasks": 1 << 28}, {"flags": 0x1C1}]
)
def test_a_layout_no_struct_can_have_is_refused(lie: dict[str, int]) -> None:
    memory = KernelMemory()
    memory.symbols.layouts = {
        **LAYOUTS,
        "task_struct": (0x200, {**LAYOUTS["task_struct"][1], **lie}),
    }
    with pytest.raises(CorruptTable):
        tasks_of(memory)
