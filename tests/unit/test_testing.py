"""The fakes that come with qvmi, and that a codepack can be tested with nothing but them."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qvmi.testing
from qvmi.addr import Pa, PaRange, Va
from qvmi.errors import MachineGone, MemoryFault, NotDirect, UsageError, WalkFailed
from qvmi.manager.watch import WatchedMachine
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Gap, GuestOS, Module, Thread, Variable
from qvmi.testing import (
    FakeGuest,
    FakeMachine,
    FakeMemory,
    MemoryRead,
    fake_module,
    fake_process,
    fake_socket,
)
from tests.asynchronous import asynchronous

INIT, SHELL = fake_process(1, name="init"), fake_process(7, name="sh")
THREAD = Thread(pid=8, tgid=7, state="S", name="sh", address=Va(8), start_time_s=1.0)
MODULE = Module(name="ext4", address=Va(16), size=4096, state="live", struct_address=Va(32))
RUNS = {Pa(0x1000): b"a" * 0x10, Pa(0x5000): b"b" * 0x2000}


def test_the_example_in_its_docstring_is_true() -> None:
    result = doctest.testmod(qvmi.testing)
    assert (result.failed, result.attempted > 0) == (0, True)


def processes_seen(machine: WatchedMachine, memory: PhysicalMemory, guest: GuestOS) -> int:
    return len(machine.guest.processes()) + len(guest.processes()) + len(memory.ranges)


def test_the_fakes_pass_for_what_they_stand_for() -> None:
    guest = FakeGuest(processes=[INIT])
    assert processes_seen(FakeMachine(guest), FakeMemory(RUNS), guest) == 4


# --------------------------------------------------------------------------------------------- guest


def test_a_guest_answers_with_what_it_was_given_and_logs_the_calls() -> None:
    guest = FakeGuest(processes=[INIT], threads=[THREAD], modules=[MODULE])
    assert guest.processes().items == guest.process_ids().items == (INIT,)
    assert (guest.threads().items, guest.modules().items) == ((THREAD,), (MODULE,))
    assert guest.facts().os == "linux"
    assert guest.calls == ["processes", "process_ids", "threads", "modules", "facts"]


def test_a_guest_can_show_the_two_views_differently() -> None:
    guest = FakeGuest(processes=[INIT], process_ids=[])
    assert (guest.processes().items, guest.process_ids().items) == ((INIT,), ())


def test_answers_for_one_call_take_turns_before_the_standing_one() -> None:
    guest = FakeGuest(processes=[INIT])
    gap = Gap("tasks", None, "torn")
    guest.show_processes([], once=True)
    guest.show_processes([SHELL], gaps=[gap], once=True)
    guest.show_processes([INIT, SHELL])
    listings = [guest.processes() for _ in range(4)]
    assert [listing.items for listing in listings] == [(), (SHELL,), (INIT, SHELL), (INIT, SHELL)]
    assert [listing.gaps for listing in listings] == [(), (gap,), (), ()]


def test_every_listing_can_be_changed() -> None:
    guest = FakeGuest()
    guest.show_processes([INIT])
    guest.show_process_ids([SHELL])
    guest.show_threads([THREAD])
    guest.show_modules([MODULE])
    assert guest.processes().items == (INIT,)
    assert guest.process_ids().items == (SHELL,)
    assert guest.threads().items == (THREAD,)
    assert guest.modules().items == (MODULE,)


def test_those_of_one_process_are_the_rows_with_its_pid() -> None:
    rows = [Variable(1, "HOME", "/"), Variable(7, "SHLVL", "1")]
    guest = FakeGuest(processes=[INIT, SHELL], environment=rows)
    assert guest.environment(SHELL).items == (rows[1],)


def test_rows_are_made_of_what_a_test_is_about() -> None:
    mine, other = fake_socket(7, local="10.0.0.1:22"), fake_socket(1)
    nobodys = fake_socket(None, state="TIME_WAIT")
    guest = FakeGuest(sockets=[mine, other, nobodys], modules=[fake_module("evil", size=8192)])
    assert guest.sockets(SHELL).items == (mine,)
    assert (mine.local, mine.state, mine.fd) == ("10.0.0.1:22", "LISTEN", 3)
    assert (nobodys.pid, nobodys.fd, nobodys.inode) == (None, None, 0)
    assert (guest.modules()[0].name, guest.modules()[0].size) == ("evil", 8192)
    addresses = {row.address for row in (mine, other, nobodys, fake_socket(7, fd=4))}
    assert len(addresses) == 4
    assert fake_module("a").address != fake_module("b", place=1).address


def test_any_listing_can_be_changed_by_its_name() -> None:
    guest = FakeGuest(processes=[INIT])
    gap = Gap("mm_struct", None, "torn")
    guest.show("environment", [Variable(1, "A", None)], gaps=[gap], once=True)
    listing = guest.environment(INIT)
    assert ([row.name for row in listing], listing.gaps) == (["A"], (gap,))
    assert guest.environment(INIT).items == ()


def test_a_listing_that_is_none_cannot_be_changed() -> None:
    with pytest.raises(UsageError, match="environment"):
        FakeGuest().show("faults", [])


METHODS = (
    *("facts", "processes", "process_ids", "threads", "modules"),
    *("mounts", "open_files", "sockets", "command_lines", "log", "cached_files"),
    *("credentials", "namespaces", "cgroups", "bpf_programs"),
)


@pytest.mark.parametrize("method", METHODS)
def test_an_armed_fault_goes_off_once_in_its_method_and_is_logged(method: str) -> None:
    guest = FakeGuest()
    guest.fail_next(method, WalkFailed("tasks", "a loop"))
    with pytest.raises(WalkFailed):
        getattr(guest, method)()
    getattr(guest, method)()
    assert guest.calls == [method, method]


def test_several_faults_of_a_method_take_turns() -> None:
    guest = FakeGuest()
    first, second = WalkFailed("tasks", "1"), WalkFailed("tasks", "2")
    guest.fail_next("processes", first)
    guest.fail_next("processes", second)
    for expected in (first, second):
        with pytest.raises(WalkFailed) as caught:
            guest.processes()
        assert caught.value is expected


def test_a_fault_for_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="process_ids"):
        FakeGuest().fail_next("procesess", ValueError())


def test_processes_differ_in_what_identifies_them() -> None:
    processes = [fake_process(pid) for pid in range(1, 100)]
    assert len({one.address for one in processes}) == 99
    assert fake_process(5, name="x", uid=33, state="Z").uid == 33


# -------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("mapped", [False, True])
def test_memory_reads_exactly_and_logs_the_reads(*, mapped: bool) -> None:
    memory = FakeMemory(RUNS, mapped=mapped)
    assert memory.read(Pa(0x1002), 4) == b"aaaa"
    assert memory.read(Pa(0x5000), 0x2000) == b"b" * 0x2000
    assert memory.reads == [MemoryRead(Pa(0x1002), 4), MemoryRead(Pa(0x5000), 0x2000)]
    memory.close()


@pytest.mark.parametrize(
    ("pa", "size", "fault"),
    [(0, 1, 0), (0x0FFF, 2, 0x0FFF), (0x100F, 2, 0x1010), (0x7000, 1, 0x7000), (0x1010, 1, 0x1010)],
)
def test_memory_names_the_first_address_that_it_has_not(pa: int, size: int, fault: int) -> None:
    with pytest.raises(MemoryFault) as caught:
        FakeMemory(RUNS).read(Pa(pa), size)
    assert (caught.value.address, caught.value.size) == (fault, size)


def test_runs_that_touch_are_one_range() -> None:
    memory = FakeMemory({Pa(0x2000): b"b" * 16, Pa(0x1FF0): b"a" * 16, Pa(0x3000): b"c"})
    assert list(memory.ranges) == [
        PaRange(Pa(0x1FF0), Pa(0x2010)),
        PaRange(Pa(0x3000), Pa(0x3001)),
    ]
    assert memory.read(Pa(0x1FFF), 2) == b"ab"


def test_runs_that_overlap_are_refused() -> None:
    with pytest.raises(UsageError, match="0x1008"):
        FakeMemory({Pa(0x1000): b"a" * 16, Pa(0x1008): b"b"})


def test_windows_show_the_bytes_and_cannot_be_written_to() -> None:
    memory = FakeMemory(RUNS, mapped=True)
    assert [(window.start, window.end) for window in memory.windows] == [
        (0x1000, 0x1010),
        (0x5000, 0x7000),
    ]
    for window in memory.windows:
        size = window.end - window.start
        shown = window.buffer[window.offset : window.offset + size]
        assert shown == memory.read(window.start, size)
        with pytest.raises(TypeError):
            window.buffer[0] = 0
    memory.close()


def test_memory_that_is_not_mapped_has_no_windows() -> None:
    assert list(FakeMemory(RUNS).windows) == []


def test_closed_memory_reads_nothing() -> None:
    memory = FakeMemory(RUNS, mapped=True)
    memory.close()
    with pytest.raises(MemoryFault):
        memory.read(Pa(0x1000), 1)
    assert list(memory.windows) == []


def test_an_armed_memory_fault_goes_off_once_and_is_logged() -> None:
    memory = FakeMemory(RUNS)
    memory.fail_next(MemoryFault(Pa(0x1000), 1))
    with pytest.raises(MemoryFault):
        memory.read(Pa(0x1000), 1)
    assert memory.read(Pa(0x1000), 1) == b"a"
    assert len(memory.reads) == 2


@given(
    st.integers(0, 0x3000),
    st.lists(st.tuples(st.sampled_from([1, 100, 0x1000, 0x2FFF]), st.booleans()), max_size=6),
)
def test_data_ranges_hold_every_byte_that_is_not_zero(
    start: int, parts: list[tuple[int, bool]]
) -> None:
    data = b"".join((b"\x01" if filled else b"\0") * size for size, filled in parts)
    memory = FakeMemory({Pa(start): data})
    ranges = list(memory.data_ranges())
    kept: set[int] = set()
    for one in ranges:
        kept.update(range(one.start, one.end))
        assert any(memory.read(one.start, one.size))
    assert all(first.end < second.start for first, second in itertools.pairwise(ranges))
    assert {start + at for at, byte in enumerate(data) if byte} <= kept
    assert kept <= set(range(start, start + len(data)))


# ------------------------------------------------------------------------------------------- machine


@asynchronous
async def test_a_machine_logs_what_is_used_and_fails_as_armed() -> None:
    machine = FakeMachine()
    machine.fail_next("refresh", MachineGone("refresh"))
    machine.fail_next("run_state", MachineGone("run_state"))
    assert machine.guest.processes().items == ()
    with pytest.raises(MachineGone):
        await machine.refresh()
    with pytest.raises(MachineGone):
        await machine.run_state()
    assert await machine.run_state() == "running"
    assert machine.calls == ["guest", "refresh", "run_state", "run_state"]


@asynchronous
async def test_a_machine_that_is_not_direct_answers_queries_alone() -> None:
    machine = FakeMachine(FakeGuest(processes=[INIT]), direct=False)
    with pytest.raises(NotDirect, match="query"):
        _ = machine.guest
    assert (await machine.query(lambda guest: guest.processes())).items == (INIT,)
    assert machine.calls == ["guest", "query"]


def test_a_reset_puts_in_another_guest_and_counts() -> None:
    machine, other = FakeMachine(), FakeGuest(processes=[INIT])
    machine.reset(other)
    assert (machine.guest, machine.epoch) == (other, 1)
