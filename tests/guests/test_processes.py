"""The processes and threads that are seen are those of the guest's own /proc, field by field."""

from collections.abc import Callable
from pathlib import Path

import qvmi
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree, assert_threads_agree, shown_name
from tests.guests.lab import Guest

LIVE_THREADS = 9
HOSTILE = (
    b"a (b)[c] d) S 1",
    b"\x1b[31mred\x1b[0m",
    b"\x1b]0;title\x07\x1b[2J",
    b"\xff\xfe\x80caf\xe9",
    b"\xe2\x80\xaegnp.exe",
    b"line1\nline2",
    b"tab\tback\\x41\r",
    b"",
)
"""Some of the names in tests/guests/lab/init/population.c, copied by hand."""


@asynchronous
async def test_equals_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        proof_count(assert_processes_agree(guest, machine.guest.processes))


@asynchronous
async def test_threads_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        proof_count(assert_threads_agree(guest, machine.guest.threads))


@asynchronous
async def test_the_pid_namespace_knows_the_same_processes(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        assert_processes_agree(guest, machine.guest.process_ids)


@asynchronous
async def test_tree_equals_proc(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rows = [row for row in machine.guest.processes() if not row.kernel_thread]
    by_pid = {row.pid: row for row in rows}
    parents = {row.name: by_pid[row.ppid].name for row in rows if row.ppid in by_pid}
    assert {child: parents[child] for child in ("tree-4", "tree-3", "tree-2", "tree-1")} == {
        "tree-4": "tree-3",
        "tree-3": "tree-2",
        "tree-2": "tree-1",
        "tree-1": "init",
    }
    assert parents["ns-child"] == "ns-init"
    assert parents["ns-init"] == "namespaces"
    assert parents["orphan"] == "init"
    assert parents["zombie-child"] == "zombie-parent"


@asynchronous
async def test_a_hostile_name_is_its_very_bytes(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        names = [row.name for row in machine.guest.processes()]
    assert [names.count(shown_name(name)) for name in HOSTILE] == [1] * len(HOSTILE)


@asynchronous
async def test_names_each_thread_as_it_named_itself(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "threads")
        names = [row.name for row in machine.guest.threads() if row.tgid == owner.pid]
    assert names == ["threads", "\x1b[1mthr[/]", *(f"thr-{n}" for n in range(1, LIVE_THREADS - 1))]


@asynchronous
async def test_every_state_that_can_be_held_is_seen(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        states = {row.name: row.state for row in machine.guest.processes()}
    held = ("vfork-parent", "zombie-child", "dead-leader", "stopped", "traced", "sleep")
    assert [states[name] for name in held] == ["D", "Z", "Z", "T", "t", "S"]


@asynchronous
async def test_real_ids_are_shown_and_not_effective_ones(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        ids = {row.name: (row.uid, row.gid) for row in machine.guest.processes()}
    assert ids["raised-uid"] == (1001, 1002)
    assert ids["lowered-uid"] == (0, 0)
    assert ids["large-ids"] == (4000000000, 3000000001)
