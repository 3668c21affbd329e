"""Command lines and environments in user memory written by hand."""

import pytest

from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import CommandLine, Variable
from qvmi.semantics.linux.processes.command_line import CommandLines
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_files import KernelFiles
from tests.synthetic.kernel_memory import DIRECT_MAP
from tests.synthetic.page_tables import PAGE, PageTables

STACK = 0x7FFF_0000_0000
NOWHERE = 0x4141_4141_4141_4141
TABLES, USER = 0xC_0000, 0xD_0000
"""Where page tables and user pages lie in RAM, behind all that is allocated."""


class Process(KernelFiles):
    """This is one process with four pages of stack, which the texts are written to.

    Args:
        present: which of the pages are in memory.
    """

    def __init__(self, *, present: tuple[int, ...] = (0, 1, 2, 3), mapped: bool = True) -> None:
        super().__init__(mapped=mapped)
        self.task = self.add_process(7)
        tables = PageTables(self.ram, TABLES, free=TABLES + PAGE)
        for number in present:
            tables.map(STACK + number * PAGE, USER + number * PAGE, user=True)
        self.mm = self.memory(self.task, pgd=DIRECT_MAP + TABLES)

    def stack(self, arguments: bytes, environment: bytes = b"", *, at: int = 0x100) -> None:
        self.ram.write(USER + at, arguments + environment)
        border = STACK + at + len(arguments)
        self.bounds(STACK + at, border, border, border + len(environment))

    def bounds(self, *bounds: int) -> None:
        names = ("arg_start", "arg_end", "env_start", "env_end")
        for name, value in zip(names, bounds, strict=True):
            self.u64(self.at(self.mm, "mm_struct", name), value)

    def lines(self) -> CommandLines:
        return CommandLines(self.space, self.symbols, tasks=self.tasks())

    def tasks(self) -> Tasks:
        return Tasks(self.space, self.symbols, ram_size=1 << 20)

    def command_line(self) -> ListWalk[CommandLine]:
        return self.lines().of(self.tasks().processes().rows.values())

    def words(self) -> tuple[str, ...]:
        (row,) = self.command_line().rows.values()
        return row.arguments

    def environment(self) -> ListWalk[Variable]:
        (row,) = self.tasks().processes().rows.values()
        return self.lines().environment(row)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ()),
        (b"sh\0", ("sh",)),
        (b"sh\0-c\0a b\0", ("sh", "-c", "a b")),
        (b"sh\0\0\0x\0", ("sh", "", "", "x")),
        (b"\xff\n\0", ("\\xff\n",)),
    ],
)
def test_words_are_separated_by_nul(data: bytes, words: tuple[str, ...]) -> None:
    process = Process()
    process.stack(data)
    assert process.words() == words


def test_a_title_goes_on_where_the_environment_was_up_to_a_nul() -> None:
    process = Process()
    process.stack(b"daemon: wai", b"ting\0HOME=/\0")
    assert process.words() == ("daemon: waiting",)


def test_variables_are_split_at_the_first_sign() -> None:
    process = Process()
    process.stack(b"sh\0", b"A=1\0B=x=y\0odd\0=\0")
    assert [(v.name, v.value) for v in process.environment().rows.values()] == [
        ("A", "1"),
        ("B", "x=y"),
        ("odd", None),
        ("", ""),
    ]


def test_texts_cross_pages() -> None:
    process = Process()
    process.stack(b"a" * PAGE + b"\0b\0", at=PAGE - 8)
    assert process.words() == ("a" * PAGE, "b")


def test_a_kernel_thread_has_neither() -> None:
    process = Process()
    process.set_u64(process.task, "mm", 0)
    assert (process.words(), process.environment().rows) == ((), {})


def test_a_process_in_the_midst_of_exec_has_no_words_yet() -> None:
    process = Process()
    process.bounds(STACK, 0, 0, 0)
    found = process.command_line()
    assert (process.words(), found.gaps) == ((), [])


# ------------------------------------------------------------------------------ what is not there


def test_a_page_that_is_not_in_memory_is_a_gap_and_takes_only_what_it_cuts() -> None:
    process = Process(present=(0, 2, 3))
    whole, cut = b"w" * 100 + b"\0", b"c" * PAGE + b"\0"
    process.stack(whole + cut + b"behind\0", at=PAGE - 200)
    process.ram.write(USER + 2 * PAGE, b"c" * 2 + b"\0behind\0")
    process.bounds(STACK + PAGE - 200, STACK + 2 * PAGE + 10, STACK, STACK)
    found = process.command_line()
    (row,) = found.rows.values()
    assert row.arguments == ("w" * 100, "behind")
    assert [gap.address for gap in found.gaps] == [STACK + PAGE]
    assert "process 7" in found.gaps[0].reason


def test_of_a_process_without_any_page_there_is_only_the_gap() -> None:
    process = Process(present=())
    process.stack(b"sh\0")
    found = process.command_line()
    (row,) = found.rows.values()
    assert (row.arguments, len(found.gaps)) == ((), 1)


@pytest.mark.parametrize("size", [(6 << 20) + 1, 1 << 40])
def test_a_text_larger_than_any_is_a_gap(size: int) -> None:
    process = Process()
    process.bounds(STACK, STACK + size, STACK, STACK + size)
    assert "process 7" in process.command_line().gaps[0].reason
    with pytest.raises(WalkFailed, match="process 7"):
        process.environment()


@pytest.mark.parametrize("end", [1, STACK - 8])
def test_a_text_that_ends_before_it_begins_is_a_gap(end: int) -> None:
    process = Process()
    process.bounds(STACK, end, STACK, end)
    assert "process 7" in process.command_line().gaps[0].reason
    with pytest.raises(WalkFailed, match="process 7"):
        process.environment()


def test_memory_that_is_nowhere_is_a_gap_of_its_process() -> None:
    process = Process()
    process.set_u64(process.task, "mm", NOWHERE)
    assert [gap.address for gap in process.command_line().gaps] == [process.task]


def test_page_tables_that_are_nowhere_are_a_gap() -> None:
    process = Process()
    process.stack(b"sh\0")
    process.u64(process.at(process.mm, "mm_struct", "pgd"), NOWHERE)
    assert process.command_line().gaps


def test_a_process_that_execs_meanwhile_is_read_again() -> None:
    process = Process(mapped=False)
    process.stack(b"old\0")
    at = process.at(process.task, "task_struct", "mm")
    new = process.memory(process.task, pgd=DIRECT_MAP + TABLES)
    process.u64(at, process.mm)
    process.ram.write(USER + PAGE, b"new\0")
    for name, value in (("arg_start", STACK + PAGE), ("arg_end", STACK + PAGE + 4)):
        process.u64(process.at(new, "mm_struct", name), value)

    def exec_(pa: int) -> None:
        if pa == USER + 0x100:
            process.ram.before_read = None
            process.u64(at, new)

    process.ram.before_read = exec_
    found = process.command_line()
    assert [row.arguments for row in found.rows.values()] == [("new",)]
    assert found.retries == 1
