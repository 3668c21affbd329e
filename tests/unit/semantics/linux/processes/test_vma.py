"""Memory maps written by hand: trees and lists, true and false."""

import pytest

from qvmi.addr import Va
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import MemoryMapping
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.processes.vma import Mappings
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.kernel_files import LAST, LIST_LAYOUTS, TREE_LAYOUTS, KernelFiles
from tests.synthetic.symbols import Layouts

PAGE = 0x1000
BASE = 0x40_0000
NOWHERE = 0x4141_4141_4141_4141
FEW_SECONDS = 60
"""Of processor time, several times what this takes."""
BOTH = pytest.mark.parametrize("layouts", [TREE_LAYOUTS, LIST_LAYOUTS], ids=["tree", "list"])


def made(memory: KernelFiles) -> tuple[Tasks, Mappings]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=4 << 20)
    paths = Paths(memory.space, memory.symbols)
    return tasks, Mappings(memory.space, memory.symbols, tasks=tasks, paths=paths)


def walk(memory: KernelFiles) -> ListWalk[MemoryMapping]:
    tasks, maps = made(memory)
    (process,) = tasks.processes().rows.values()
    return maps.of(process)


def walk_all(memory: KernelFiles) -> ListWalk[MemoryMapping]:
    tasks, maps = made(memory)
    return maps.of_all(list(tasks.processes().rows.values()))


def starts(memory: KernelFiles) -> list[int]:
    return [row.start for row in walk(memory).rows.values()]


def mapped(layouts: Layouts, count: int, **options: bool) -> tuple[KernelFiles, int, list[int]]:
    """This is a process with so many pages, a hole between each two."""
    memory = KernelFiles(layouts, **options)
    mm = memory.memory(memory.add_process(7))
    pages = [memory.vma(mm, BASE + 2 * n * PAGE, BASE + (2 * n + 1) * PAGE) for n in range(count)]
    memory.link(mm, pages)
    return memory, mm, pages


@BOTH
def test_a_mapping_has_all_its_fields(layouts: Layouts) -> None:
    memory = KernelFiles(layouts)
    mm = memory.memory(memory.add_process(7))
    file = memory.file(memory.dentry(b"sh", memory.root), inode=memory.inode(number=12))
    vma = memory.vma(mm, BASE, BASE + PAGE, vm_flags=5, vm_pgoff=3, vm_file=file)
    memory.link(mm, [vma])
    assert list(walk(memory).rows.values()) == [
        MemoryMapping(
            7,
            Va(BASE),
            Va(BASE + PAGE),
            "r-xp",
            3 * PAGE,
            "8:1",
            12,
            "/sh",
            deleted=False,
            address=Va(vma),
        )
    ]


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 15])
def test_all_are_found_in_the_order_of_addresses(layouts: Layouts, count: int) -> None:
    memory, _, _ = mapped(layouts, count)
    assert starts(memory) == [BASE + 2 * n * PAGE for n in range(count)]
    assert walk(memory).gaps == []


@pytest.mark.parametrize(
    ("flags", "shown"),
    [(0, "---p"), (7, "rwxp"), (0x81, "r--s"), (0x83, "rw-s"), (0xFFFF_FF05, "r-xp")],
)
def test_permissions_are_written_as_proc_does(flags: int, shown: str) -> None:
    memory = KernelFiles()
    mm = memory.memory(memory.add_process(7))
    memory.link(mm, [memory.vma(mm, BASE, BASE + PAGE, vm_flags=flags)])
    assert [row.permissions for row in walk(memory).rows.values()] == [shown]


def test_heap_stack_and_special_mappings_have_names() -> None:
    memory = KernelFiles()
    mm = memory.memory(
        memory.add_process(7), start_brk=BASE, brk=BASE + PAGE, start_stack=BASE + 5 * PAGE
    )
    operations, special = (
        memory.allocate("vm_operations_struct"),
        memory.allocate("vm_special_mapping"),
    )
    memory.u64(operations + 0x20, memory.symbols.addresses["special_mapping_name"])
    memory.u64(special, memory.text(b"[vdso]"))
    at = [BASE + n * PAGE for n in (0, 2, 4, 8)]
    vmas = [memory.vma(mm, start, start + 2 * PAGE) for start in at[:3]]
    vmas.append(memory.vma(mm, at[3], at[3] + PAGE, vm_ops=operations, vm_private_data=special))
    memory.link(mm, vmas)
    assert [row.name for row in walk(memory).rows.values()] == ["[heap]", "", "[stack]", "[vdso]"]


def test_kernel_threads_have_none_and_that_is_no_gap() -> None:
    memory = KernelFiles()
    memory.add_process(7)
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])


# ------------------------------------------------------------------------------ what cannot be


@BOTH
def test_a_mapping_that_is_nowhere_is_a_gap_and_the_others_are_told(layouts: Layouts) -> None:
    memory, _, pages = mapped(layouts, 6)
    memory.u64(memory.at(pages[2], "vm_area_struct", "vm_mm"), NOWHERE)
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == [p for p in pages if p != pages[2]]
    assert pages[2] in {gap.address for gap in found.gaps}


@BOTH
@pytest.mark.parametrize("start", [0, BASE + 5 * PAGE, NOWHERE, BASE + 1])
def test_bounds_that_cannot_be_are_a_gap(layouts: Layouts, start: int) -> None:
    memory, _, pages = mapped(layouts, 3)
    memory.u64(pages[1], start)
    found = walk(memory)
    assert found.gaps
    assert {pages[0], pages[2]} <= {row.address for row in found.rows.values()}


def test_a_list_that_breaks_off_is_a_gap_and_the_tree_leads_on() -> None:
    memory, _, pages = mapped(LIST_LAYOUTS, 6)
    memory.u64(memory.at(pages[2], "vm_area_struct", "vm_next"), NOWHERE)
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == pages
    assert found.gaps


def test_a_list_that_ends_before_the_tree_is_a_gap_and_the_tree_leads_on() -> None:
    memory, mm, pages = mapped(LIST_LAYOUTS, 6)
    memory.u64(memory.at(pages[2], "vm_area_struct", "vm_next"), 0)
    memory.u32(memory.at(mm, "mm_struct", "map_count"), 3)
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == pages
    assert "the list ends" in found.gaps[0].reason


def test_a_piece_that_is_unmapped_while_the_walk_stands_on_it_hides_nothing_behind() -> None:
    memory, mm, pages = mapped(LIST_LAYOUTS, 6, mapped=False)
    kept = [*pages[:2], *pages[4:]]
    cut = pages[3]

    def unmap(pa: int) -> None:
        if pa == cut + memory.to_pa:
            memory.ram.before_read = None
            memory.link(mm, kept)
            memory.u64(memory.at(cut, "vm_area_struct", "vm_next"), 0)

    memory.ram.before_read = unmap
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == kept
    assert (found.gaps, found.retries) == ([], 1)


def test_a_list_that_is_a_loop_ends() -> None:
    memory, _, pages = mapped(LIST_LAYOUTS, 6)
    memory.u64(memory.at(pages[5], "vm_area_struct", "vm_next"), pages[0])
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == pages
    assert found.gaps


@BOTH
def test_a_mapping_left_out_is_missed_in_the_count(layouts: Layouts) -> None:
    memory, mm, pages = mapped(layouts, 4)
    memory.link(mm, [*pages[:2], *pages[3:]])
    memory.u32(memory.at(mm, "mm_struct", "map_count"), 4)
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == [*pages[:2], *pages[3:]]
    assert "3 of 4 mappings" in found.gaps[0].reason


@BOTH
def test_while_somebody_changes_the_map_its_count_may_be_behind(layouts: Layouts) -> None:
    memory, mm, _ = mapped(layouts, 3)
    memory.u32(memory.at(mm, "mm_struct", "map_count"), 4)
    memory.u64(memory.at(mm, "mm_struct", "mmap_lock"), 1)
    found = walk(memory)
    assert (len(found.rows), found.gaps) == (3, [])
    assert found.retries > 0


def test_while_somebody_changes_the_map_bounds_may_be_those_of_the_mapping_itself() -> None:
    memory, mm, pages = mapped(TREE_LAYOUTS, 3)
    memory.u64(pages[1] + 8, BASE + 4 * PAGE)
    memory.u64(memory.at(mm, "mm_struct", "mmap_lock"), 1)
    found = walk(memory)
    assert [row.end for row in found.rows.values()] == [
        *(BASE + PAGE, BASE + 4 * PAGE, BASE + 5 * PAGE)
    ]
    assert found.gaps == []
    assert found.retries > 0


@pytest.mark.parametrize("root", [NOWHERE & ~3 | 2, 0x1002 | 15 << 3, LAST & ~1])
def test_a_root_that_is_no_node_is_a_gap(root: int) -> None:
    memory, mm, _ = mapped(TREE_LAYOUTS, 3)
    memory.u64(memory.at(mm, "mm_struct", "mm_mt") + 8, root)
    found = walk(memory)
    assert not found.rows
    assert found.gaps


def test_a_node_that_is_its_own_child_ends() -> None:
    memory, mm, _ = mapped(TREE_LAYOUTS, 15)
    root = memory.get(memory.at(mm, "mm_struct", "mm_mt") + 8)
    memory.u64((root & ~0xFF) + 80, root)
    found = walk(memory)
    assert found.gaps
    assert found.rows  # those of the other leaves


def test_pivots_that_do_not_rise_are_a_gap() -> None:
    memory, mm, _ = mapped(TREE_LAYOUTS, 3)
    root = memory.get(memory.at(mm, "mm_struct", "mm_mt") + 8)
    memory.u64((root & ~0xFF) + 16, 5)
    assert walk(memory).gaps


def test_a_dead_node_that_stays_is_read_all_the_same_with_a_gap() -> None:
    memory, mm, pages = mapped(TREE_LAYOUTS, 1)
    root = memory.get(memory.at(mm, "mm_struct", "mm_mt") + 8)
    memory.u64(root & ~0xFF, root & ~0xFF)
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == pages
    assert "faster than it can be read" in found.gaps[0].reason


def test_a_node_that_is_replaced_meanwhile_is_read_again() -> None:
    memory, mm, pages = mapped(TREE_LAYOUTS, 3, mapped=False)
    root = memory.at(mm, "mm_struct", "mm_mt") + 8
    old, new = memory.get(root), memory.maple_of(pages)

    def replace(pa: int) -> None:
        if pa == (old & ~0xFF) + memory.to_pa:
            memory.ram.before_read = None
            memory.u64(old & ~0xFF, old & ~0xFF)
            memory.u64(root, new)

    memory.ram.before_read = replace
    found = walk(memory)
    assert [row.address for row in found.rows.values()] == pages
    assert (found.gaps, found.retries) == ([], 1)


def test_memory_that_is_gone_meanwhile_is_none() -> None:
    memory, mm, _ = mapped(TREE_LAYOUTS, 3, mapped=False)
    task = memory.get(memory.tasks_head) - memory.member("task_struct", "tasks")

    def exit_mm(pa: int) -> None:
        if pa == mm + memory.to_pa:
            memory.ram.before_read = None
            memory.set_u64(task, "mm", 0)

    memory.ram.before_read = exit_mm
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])
    assert found.retries == 1


def test_memory_that_is_nowhere_cannot_be_walked() -> None:
    memory = KernelFiles()
    memory.set_u64(memory.add_process(7), "mm", NOWHERE)
    with pytest.raises(WalkFailed, match="process 7"):
        walk(memory)


def test_a_process_that_is_gone_cannot_be_walked() -> None:
    memory, _, _ = mapped(TREE_LAYOUTS, 1)
    tasks, maps = made(memory)
    (process,) = tasks.processes().rows.values()
    memory.delete(memory.tasks_link(process.address))
    with pytest.raises(WalkFailed, match="is gone"):
        maps.of(process)


# ---------------------------------------------------------------------- those of all processes


def three(layouts: Layouts, **options: bool) -> tuple[KernelFiles, list[int]]:
    """These are three processes with a page each, and a kernel thread."""
    memory = KernelFiles(layouts, **options)
    tasks = [memory.add_process(pid) for pid in (7, 8, 9)]
    for task in tasks:
        mm = memory.memory(task)
        memory.link(mm, [memory.vma(mm, BASE, BASE + PAGE)])
    memory.add_process(10)
    return memory, tasks


@BOTH
def test_those_of_all_processes_are_listed_in_their_order(layouts: Layouts) -> None:
    memory, _ = three(layouts)
    found = walk_all(memory)
    assert [(row.pid, row.start) for row in found.rows.values()] == [
        *((7, BASE), (8, BASE), (9, BASE))
    ]
    assert found.gaps == []


@BOTH
def test_memory_that_is_nowhere_is_a_gap_of_its_process_and_hides_no_other(
    layouts: Layouts,
) -> None:
    memory, (_, liar, _) = three(layouts)
    memory.set_u64(liar, "mm", NOWHERE)
    found = walk_all(memory)
    assert [row.pid for row in found.rows.values()] == [7, 9]
    assert [gap.address for gap in found.gaps] == [liar]


@BOTH
@pytest.mark.parametrize("member", ["mm", "tasks"])
def test_one_that_ends_meanwhile_has_none_and_that_is_no_gap(layouts: Layouts, member: str) -> None:
    memory, (_, ending, _) = three(layouts, mapped=False)
    mm = memory.get(memory.at(ending, "task_struct", "mm"))

    def end(pa: int) -> None:
        if pa == memory.at(mm, "mm_struct", "map_count") + memory.to_pa:
            memory.ram.before_read = None
            if member == "mm":
                memory.set_u64(ending, "mm", 0)
            else:  # its memory is freed and used for something else
                memory.delete(memory.tasks_link(ending))
                memory.u64(memory.at(mm, "mm_struct", "map_count"), NOWHERE)
                memory.u64(memory.at(mm, "mm_struct", "start_brk"), NOWHERE)

    memory.ram.before_read = end
    found = walk_all(memory)
    assert {row.pid for row in found.rows.values()} >= {7, 9}
    assert found.gaps == []
    assert found.retries > 0


def test_maps_of_which_so_much_is_wrong_are_given_up() -> None:
    memory, mm, pages = mapped(TREE_LAYOUTS, 15)
    for pid in range(8, 170):  # all of one memory, which is a lie
        memory.set_u64(memory.add_process(pid), "mm", mm)
    for page in pages:
        memory.u64(memory.at(page, "vm_area_struct", "vm_mm"), NOWHERE)
    with cpu_seconds(FEW_SECONDS):
        found = walk_all(memory)
    assert 2000 < len(found.gaps) < 2100
    assert "given up" in found.gaps[-1].reason
