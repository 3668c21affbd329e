"""Tables of open files written by hand."""

import pytest

from qvmi.addr import Va
from qvmi.semantics.guest_os import OpenFile, Process
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.processes.fdtable import OpenFiles
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_files import KernelFiles

NOWHERE = 0x4141_4141_4141_4141


def walk(memory: KernelFiles) -> ListWalk[OpenFile]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    paths = Paths(memory.space, memory.symbols)
    files = OpenFiles(memory.space, memory.symbols, tasks=tasks, paths=paths)
    processes: list[Process] = list(tasks.processes().rows.values())
    return files.of(processes)


def rows(memory: KernelFiles) -> list[tuple[int, int, str]]:
    return [(row.pid, row.fd, row.path) for row in walk(memory).rows.values()]


def test_a_file_has_all_its_fields() -> None:
    memory = KernelFiles()
    task = memory.add_process(7)
    inode = memory.inode(number=12)
    file = memory.file(
        memory.dentry(b"log", memory.root, deleted=True), mode=3, position=9, inode=inode
    )
    memory.open(task, {5: file})
    assert list(walk(memory).rows.values()) == [
        OpenFile(7, 5, "/log", "file", "rw", 9, "8:1", 12, deleted=True, address=Va(file))
    ]


@pytest.mark.parametrize(("mode", "access"), [(1, "r"), (2, "w"), (3, "rw"), (0x4000, "")])
def test_how_a_file_is_open_is_told(mode: int, access: str) -> None:
    memory = KernelFiles()
    memory.open(memory.add_process(7), {0: memory.file(memory.root, mode=mode)})
    assert [row.access for row in walk(memory).rows.values()] == [access]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (0o140777, "socket"),
        (0o120777, "link"),
        (0o100600, "file"),
        (0o060660, "block device"),
        (0o040755, "directory"),
        (0o020620, "character device"),
        (0o010600, "pipe"),
        (0o000600, "anonymous"),
        (0o170000, "anonymous"),
    ],
)
def test_every_kind_is_told(mode: int, kind: str) -> None:
    memory = KernelFiles()
    memory.open(memory.add_process(7), {0: memory.file(memory.root, inode=memory.inode(mode))})
    assert [row.kind for row in walk(memory).rows.values()] == [kind]


def test_a_process_without_files_is_no_gap() -> None:
    memory = KernelFiles()
    memory.add_process(7)
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])


def test_two_descriptors_of_one_file_are_two_rows() -> None:
    memory = KernelFiles()
    file = memory.file(memory.dentry(b"f", memory.root))
    memory.open(memory.add_process(7), {0: file, 63: file})
    assert rows(memory) == [(7, 0, "/f"), (7, 63, "/f")]


@pytest.mark.parametrize("bad", [8, NOWHERE, (1 << 64) - 1])
def test_a_descriptor_that_leads_nowhere_is_a_gap_and_hides_no_other(bad: int) -> None:
    memory = KernelFiles()
    file = memory.file(memory.dentry(b"f", memory.root))
    memory.open(memory.add_process(7), {0: file, 1: bad, 2: file})
    found = walk(memory)
    assert [row.fd for row in found.rows.values()] == [0, 2]
    assert [gap.address for gap in found.gaps] == [bad]


@pytest.mark.parametrize("size", [(1 << 20) + 1, 0xFFFF_FFFF])
def test_a_table_larger_than_any_is_a_gap_of_its_process(size: int) -> None:
    memory = KernelFiles()
    file = memory.file(memory.dentry(b"f", memory.root))
    liar, honest = memory.add_process(7), memory.add_process(8)
    memory.open(liar, {0: file})
    memory.open(honest, {0: file})
    table = memory.get(memory.get(memory.at(liar, "task_struct", "files")) + 0x20)
    memory.u32(table, size)
    found = walk(memory)
    assert [row.pid for row in found.rows.values()] == [8]
    assert [gap.address for gap in found.gaps] == [liar]


def test_a_table_that_is_nowhere_is_a_gap_of_its_process() -> None:
    memory = KernelFiles()
    liar = memory.add_process(7)
    memory.set_u64(liar, "files", NOWHERE)
    assert [gap.address for gap in walk(memory).gaps] == [liar]


def test_a_process_that_ends_meanwhile_has_no_files_and_no_gap() -> None:
    memory = KernelFiles(mapped=False)
    task = memory.add_process(7)
    memory.open(task, {0: NOWHERE})
    pa = memory.at(task, "task_struct", "files") + memory.to_pa

    def end(read: int) -> None:
        if read == pa:
            memory.ram.before_read = None
            memory.delete(memory.tasks_link(task))

    memory.ram.before_read = end
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])
    assert found.retries > 0


def test_a_file_that_is_used_again_is_shown_as_what_the_descriptor_refers_to_now() -> None:
    memory = KernelFiles(mapped=False)
    old = memory.file(memory.dentry(b"old", memory.root))
    new = memory.file(memory.dentry(b"new", memory.root))
    slots = memory.open(memory.add_process(7), {3: old})

    def reopen(read: int) -> None:
        if read == old + memory.to_pa:
            memory.ram.before_read = None
            memory.u64(slots + 24, new)

    memory.ram.before_read = reopen
    assert rows(memory) == [(7, 3, "/new")]


def test_descriptors_without_number_that_lead_nowhere_are_given_up() -> None:
    memory = KernelFiles(size=4 << 20)
    for pid in range(2, 12):
        memory.open(memory.add_process(pid), dict.fromkeys(range(2048), NOWHERE), size=2048)
    found = walk(memory)
    assert 10_000 < len(found.gaps) < 13_000
    assert "given up" in found.gaps[-1].reason
