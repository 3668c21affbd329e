"""Credentials of kernels, and at moments, that no guest of the lab has."""

import pytest

from qvmi.errors import LayoutNotFound, WalkFailed
from qvmi.semantics.guest_os import Credentials, Process
from qvmi.semantics.linux.processes.cred import CredentialTable
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_confinement import KernelConfinement, without


def populated(memory: KernelConfinement) -> list[int]:
    tasks = [memory.add_process(pid) for pid in (7, 8)]
    for task in tasks:
        memory.trust(task, memory.credentials(1000))
    return tasks


def table(memory: KernelConfinement) -> CredentialTable:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    return CredentialTable(memory.space, memory.symbols, tasks=tasks)


def walk(memory: KernelConfinement, process: Process | None = None) -> ListWalk[Credentials]:
    return table(memory).of(process)


def process_of(memory: KernelConfinement, task: int) -> Process:
    return Tasks(memory.space, memory.symbols, ram_size=1 << 20).processes().rows[task]


def test_a_kernel_without_seccomp_and_apparmor_tells_neither() -> None:
    memory = KernelConfinement(layouts=without("task_struct", "seccomp"))
    populated(memory)
    rows = walk(memory).rows.values()
    assert {(row.seccomp, row.label) for row in rows} == {("", "")}


@pytest.mark.parametrize(
    ("mode", "name"), [(0, "disabled"), (1, "strict"), (2, "filter"), (3, "dead"), (77, "77")]
)
def test_a_mode_of_seccomp_has_a_name(mode: int, name: str) -> None:
    memory = KernelConfinement()
    task, _ = populated(memory)
    memory.set_u32(task, "seccomp", mode)
    assert next(iter(walk(memory).rows.values())).seccomp == name


def test_a_kernel_without_user_namespaces_in_its_types_is_refused() -> None:
    memory = KernelConfinement(layouts=without("cred", "user_ns"))
    with pytest.raises(LayoutNotFound):
        table(memory)


def test_credentials_that_change_meanwhile_are_read_again() -> None:
    memory = KernelConfinement(mapped=False)
    task, _ = populated(memory)
    old, new = memory.get(task + memory.member("task_struct", "cred")), memory.credentials(0)

    def change(pa: int) -> None:
        if pa == memory.no_groups + memory.to_pa + 8:
            memory.ram.before_read = None
            memory.trust(task, new)
            memory.write(old, b"\xff" * 0x80)

    memory.ram.before_read = change
    found = walk(memory)
    assert next((row.pid, row.uid, row.cred) for row in found.rows.values()) == (7, 0, new)
    assert (found.gaps, found.retries) == ([], 1)


def test_a_process_that_ends_meanwhile_has_no_row_and_no_gap() -> None:
    memory = KernelConfinement(mapped=False)
    task, _ = populated(memory)
    groups = memory.no_groups + memory.to_pa + 8

    def end(pa: int) -> None:
        if pa == groups:
            memory.ram.before_read = None
            memory.delete(memory.tasks_link(task))
            memory.set_u32(task, "pid", 4711)

    memory.ram.before_read = end
    found = walk(memory)
    assert [row.pid for row in found.rows.values()] == [8]
    assert found.gaps == []


def test_who_got_the_memory_of_freed_credentials_shares_them_with_nobody() -> None:
    memory = KernelConfinement(mapped=False)
    first, second = populated(memory)
    freed = memory.get(first + memory.member("task_struct", "cred"))
    fresh = memory.credentials(0)

    def reuse(pa: int) -> None:
        if pa == memory.no_groups + memory.to_pa + 8:  # who has what was looked at before
            memory.ram.before_read = None
            memory.trust(first, fresh)
            memory.trust(second, freed)

    memory.ram.before_read = reuse
    rows = {row.pid: row for row in walk(memory).rows.values()}
    assert (rows[7].cred, rows[8].cred) == (fresh, freed)
    assert (rows[7].shared_with, rows[8].shared_with) == ((), ())


def test_a_process_that_is_gone_is_said_so() -> None:
    memory = KernelConfinement()
    task, _ = populated(memory)
    process = process_of(memory, task)
    memory.delete(memory.tasks_link(task))
    with pytest.raises(WalkFailed, match="process 7 is gone"):
        walk(memory, process)


def test_who_acts_for_another_is_told_by_both_addresses() -> None:
    memory = KernelConfinement()
    task, _ = populated(memory)
    root = memory.credentials(0)
    memory.set_u64(task, "cred", root)
    row = next(iter(walk(memory).rows.values()))
    assert (row.uid, row.cred) == (1000, root)
    assert row.real_cred != root


def test_who_acts_by_what_another_has_shares_it() -> None:
    memory = KernelConfinement()
    thief, owner = populated(memory)
    memory.set_u64(thief, "cred", memory.get(owner + memory.member("task_struct", "real_cred")))
    rows = {row.pid: row for row in walk(memory).rows.values()}
    assert (rows[7].shared_with, rows[8].shared_with) == ((8,), (7,))


def test_two_who_act_by_what_is_nobodys_own_share_nothing() -> None:
    memory = KernelConfinement()
    mounter = memory.credentials(0)
    for task in populated(memory):
        memory.set_u64(task, "cred", mounter)
    rows = {row.pid: row for row in walk(memory).rows.values()}
    assert (rows[7].shared_with, rows[8].shared_with) == ((), ())
    assert rows[7].cred == rows[8].cred == mounter
