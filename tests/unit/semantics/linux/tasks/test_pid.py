"""The table of process ids over structures written by hand."""

import pytest

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, SymbolNotFound, WalkFailed
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.pid import PidTable
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory

NOWHERE = 0x1234_5678
XA_RETRY_ENTRY = 256 << 2 | 2
XA_ZERO_ENTRY = 257 << 2 | 2


def with_pids(*numbers: int, mapped: bool = True) -> KernelMemory:
    memory = KernelMemory(mapped=mapped)
    for number in numbers:
        memory.add_process(number)
    memory.write_idr()
    return memory


def table_of(memory: KernelMemory) -> PidTable:
    tasks = Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)
    return PidTable(memory.space, memory.symbols, tasks)


def walk_of(memory: KernelMemory) -> ListWalk[Process]:
    return table_of(memory).processes()


def pids(walk: ListWalk[Process]) -> list[int]:
    return [row.pid for row in walk.rows.values()]


def node_of(entry: int) -> int:
    assert entry & 3 == 2
    return entry - 2


def slot(memory: KernelMemory, node: int, number: int) -> int:
    return node + memory.member("xa_node", "slots") + 8 * number


# --------------------------------------------------------------------------------------------- sound tables


@pytest.mark.parametrize(
    "numbers",
    [
        [1],
        [1, 2, 63],
        [64],
        [1, 63, 64, 65, 4095],
        [4096],
        [1, 300_000],
        [1, (1 << 22) - 1],
        [1 << 22],
    ],
)
def test_every_process_is_told_by_rising_pid(numbers: list[int]) -> None:
    walk = walk_of(with_pids(*reversed(numbers)))
    assert (pids(walk), walk.gaps, walk.retries) == (numbers, [], 0)


def test_the_rows_are_those_of_the_task_list() -> None:
    memory = with_pids(1, 7)
    tasks = Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)
    assert walk_of(memory).rows == tasks.processes().rows


def test_an_empty_table_is_empty() -> None:
    walk = walk_of(KernelMemory())
    assert (walk.rows, walk.gaps) == ({}, [])


def test_ids_that_lead_no_thread_group_are_passed_over() -> None:
    memory = with_pids(1)
    memory.add_thread(memory.add_process(40), 41, 40)
    memory.add_id(42, 0)  # a process group or session whose leader is gone
    memory.write_idr()
    walk = walk_of(memory)
    assert (pids(walk), walk.gaps) == ([1, 40], [])


def test_a_process_taken_off_the_task_list_is_still_told() -> None:
    memory = with_pids(1, 666)
    tasks = Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)
    hidden = next(task for task, row in tasks.processes().rows.items() if row.pid == 666)
    memory.delete(memory.tasks_link(hidden))
    assert 666 not in pids(tasks.processes())
    assert 666 in pids(walk_of(memory))


# ----------------------------------------------------------------------------------- tables that contradict


@pytest.mark.parametrize("entry", [1, 3, XA_RETRY_ENTRY, XA_ZERO_ENTRY, 4 << 2 | 2])
def test_an_entry_that_is_no_pointer_is_a_gap(entry: int) -> None:
    memory = with_pids(1, 2, 3)
    memory.u64(slot(memory, node_of(memory.get(memory.idr_root)), 2), entry)
    walk = walk_of(memory)
    assert pids(walk) == [1, 3]
    assert len(walk.gaps) == 1


def test_a_node_that_cannot_be_read_is_a_gap_and_the_others_are_told() -> None:
    memory = with_pids(1, 70, 140)
    memory.u64(slot(memory, node_of(memory.get(memory.idr_root)), 1), NOWHERE | 2)
    walk = walk_of(memory)
    assert pids(walk) == [1, 140]
    assert [gap.structure for gap in walk.gaps] == ["init_pid_ns.idr"]


@pytest.mark.parametrize("shift", [6, 12, 3, 255, 30])
def test_a_node_with_an_impossible_shift_is_a_gap(shift: int) -> None:
    memory = with_pids(1, 70)
    below = node_of(memory.get(slot(memory, node_of(memory.get(memory.idr_root)), 1)))
    memory.write(below + memory.member("xa_node", "shift"), bytes([shift]))
    walk = walk_of(memory)
    assert (pids(walk), len(walk.gaps)) == ([1], 1)


def test_a_struct_pid_of_another_number_is_a_gap() -> None:
    memory = with_pids(1, 2)
    at = memory.member("pid", "numbers") + memory.member("upid", "nr")
    memory.u32(memory.idr[2] + at, 99)
    walk = walk_of(memory)
    assert pids(walk) == [1]
    assert "is of 99" in walk.gaps[0].reason


def test_a_task_that_does_not_know_its_id_is_a_gap() -> None:
    memory = with_pids(1, 2)
    tasks = Tasks(memory.space, memory.symbols, ram_size=memory.ram.size)
    task = next(task for task, row in tasks.processes().rows.items() if row.pid == 2)
    memory.set_u32(task, "pid", 3)
    memory.set_u32(task, "tgid", 3)
    walk = walk_of(memory)
    assert pids(walk) == [1]
    assert "has the pid 3" in walk.gaps[0].reason


@pytest.mark.parametrize("pointer", [NOWHERE & ~3, (1 << 64) - 4])
def test_a_struct_pid_that_cannot_be_read_is_a_gap(pointer: int) -> None:
    memory = with_pids(1, 2)
    memory.u64(slot(memory, node_of(memory.get(memory.idr_root)), 2), pointer)
    walk = walk_of(memory)
    assert (pids(walk), [gap.address for gap in walk.gaps]) == ([1], [pointer])


def test_a_table_without_a_root_fails() -> None:
    memory = with_pids(1)
    memory.symbols.addresses["init_pid_ns"] = NOWHERE
    with pytest.raises(WalkFailed, match=r"init_pid_ns\.idr"):
        walk_of(memory)


# ------------------------------------------------------------------------------ tables that change meanwhile


def at_read(memory: KernelMemory, occasion: int, *writes: tuple[int, int]) -> None:
    """This writes words just before one read of the walk."""
    reads = 0

    def before_read(_: int) -> None:
        nonlocal reads
        reads += 1
        if reads == occasion:
            for va, value in writes:
                memory.u64(va, value)

    memory.ram.before_read = before_read


@pytest.mark.parametrize("occasion", range(1, 16))
def test_an_id_freed_during_the_look_is_no_gap(occasion: int) -> None:
    memory = with_pids(1, 2, 3, mapped=False)
    node = node_of(memory.get(memory.idr_root))
    pid = memory.idr[2]
    # free_pid clears the slot; then the struct pid is used for something else.
    at_read(
        memory, occasion, (slot(memory, node, 2), 0), (pid + 0x60, 0xFFFF_FFFF), (pid + 0x18, 0)
    )
    walk = walk_of(memory)
    assert walk.gaps == []
    assert {1, 3} <= set(pids(walk)) <= {1, 2, 3}


@pytest.mark.parametrize("occasion", range(1, 8))
def test_a_table_that_grows_a_level_during_the_look_is_no_gap(occasion: int) -> None:
    memory = with_pids(1, 2, mapped=False)
    before = memory.get(memory.idr_root)
    memory.add_process(70)
    memory.write_idr()
    after = memory.get(memory.idr_root)
    memory.u64(memory.idr_root, before)
    at_read(memory, occasion, (memory.idr_root, after))
    walk = walk_of(memory)
    assert walk.gaps == []
    assert {1, 2} <= set(pids(walk))


def test_a_node_freed_while_it_is_read_is_read_again() -> None:
    memory = with_pids(1, 2, mapped=False)
    before = memory.get(memory.idr_root)
    memory.write_idr()
    after = memory.get(memory.idr_root)
    memory.u64(memory.idr_root, before)
    shift, slots = node_of(before), node_of(before) + memory.member("xa_node", "slots")
    at_read(memory, 2, (memory.idr_root, after), (shift, 0x77), (slots + 8, 0), (slots + 16, 0))
    walk = walk_of(memory)
    assert (pids(walk), walk.gaps, walk.retries) == ([1, 2], [], 1)


# --------------------------------------------------------------------------------------- tables that lie


def test_a_table_that_leads_into_itself_ends_with_gaps() -> None:
    memory = with_pids(1, 70)
    root = memory.get(memory.idr_root)
    for number in range(64):
        memory.u64(slot(memory, node_of(root), number), root)
    walk = walk_of(memory)
    assert walk.rows == {}
    assert walk.gaps


def test_one_struct_pid_for_every_number_is_given_up() -> None:
    memory = with_pids(1, 70)
    top = node_of(memory.get(memory.idr_root))
    leaf = node_of(memory.get(slot(memory, top, 0)))
    for number in range(64):
        memory.u64(slot(memory, leaf, number), memory.idr[1])
        memory.u64(slot(memory, top, number), leaf | 2)
    walk = walk_of(memory)
    assert pids(walk) == [1]
    assert "given up" in walk.gaps[-1].reason or "more than" in walk.gaps[-1].reason
    assert len(walk.gaps) < 2000


def test_a_lookup_that_leads_in_a_circle_ends() -> None:
    memory = with_pids(1, 70)
    root = memory.get(memory.idr_root)
    memory.u64(slot(memory, node_of(root), 0), root)
    assert not table_of(memory)._numbers.has(1, memory.idr[1])  # noqa: SLF001 - no walk comes to this point


# ------------------------------------------------------------------------------------------------ profiles


def test_a_kernel_without_the_namespace_is_said_so() -> None:
    memory = with_pids(1)
    del memory.symbols.addresses["init_pid_ns"]
    with pytest.raises(SymbolNotFound, match="init_pid_ns"):
        table_of(memory)


@pytest.mark.parametrize(
    ("type_name", "member"),
    [
        ("pid_namespace", "idr"),
        ("xarray", "xa_head"),
        ("pid", "tasks"),
        ("task_struct", "pid_links"),
    ],
)
def test_a_missing_member_is_named(type_name: str, member: str) -> None:
    memory = with_pids(1)
    size, members = LAYOUTS[type_name]
    without = {name: at for name, at in members.items() if name != member}
    memory.symbols.layouts = {**LAYOUTS, type_name: (size, without)}
    with pytest.raises(LayoutNotFound, match=member):
        table_of(memory)


def test_rows_carry_the_address_of_their_task() -> None:
    memory = with_pids(1, 2)
    assert all(Va(task) == row.address for task, row in walk_of(memory).rows.items())
