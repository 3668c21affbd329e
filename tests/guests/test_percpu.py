"""Variables that each CPU has for itself are those that drgn reads, and what the guest's /proc counts."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import drgn
import pytest
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu

import qvmi
from qvmi.errors import SymbolNotFound, SymbolsError, UsageError
from qvmi.semantics.rows.percpu import PerCpuValue
from tests.guests.exotic_guests import EXOTIC_CONFIGS
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool

COMPARED: Final = (
    *("runqueues", "kstat", "process_counts", "vm_event_states", "hrtimer_bases"),
    *("tick_cpu_sched", "softirq_ctrl", "ksoftirqd", "cpu_number"),
)
"""Structs with many members, a pointer, numbers; which of them there are depends on the kernel."""
FEWEST_COMPARED: Final = 6
NO_VARIABLES: Final = "5.10"
"""Its BTF has types, but tells no variable's."""
KERNEL_STAT: Final = struct.Struct("<Q10I")
"""``struct kernel_stat``: interrupts, and softirqs by kind (include/linux/kernel_stat.h)."""


@pytest.fixture(scope="module", params=EXOTIC_CONFIGS, ids=lambda config: str(config.kernel))
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture
def machine(guest: Guest, profiles: Path) -> Iterator[qvmi.SyncMachine]:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        yield machine


@pytest.fixture
def standing(guest: Guest) -> Iterator[None]:
    guest.monitor.execute("stop")
    try:
        yield
    finally:
        guest.monitor.execute("cont")


def _softirqs(guest: Guest) -> list[tuple[int, ...]]:
    """This is what each CPU counts, by the guest's own /proc."""
    rows = guest.run("cat /proc/softirqs").decode().splitlines()[1:]
    return list(zip(*(map(int, row.split()[1:]) for row in rows), strict=True))


def _counted(row: PerCpuValue) -> tuple[int, ...]:
    if isinstance(row.value, dict):
        counts = row.value["softirqs"]
        assert isinstance(counts, list)
        return tuple(one for one in counts if isinstance(one, int))
    assert isinstance(row.value, str)
    return tuple(KERNEL_STAT.unpack_from(bytes.fromhex(row.value))[1:])


def test_counts_lie_between_those_that_the_guest_shows_before_and_after(
    guest: Guest, machine: qvmi.SyncMachine
) -> None:
    before, listing, after = _softirqs(guest), machine.guest.per_cpu("kstat"), _softirqs(guest)
    assert not listing.gaps
    assert [row.cpu for row in listing] == list(range(guest.config.cpus))
    for low, row, high in zip(before, listing, after, strict=True):
        counts = _counted(row)
        assert len(counts) == len(low)
        assert all(a <= b <= c for a, b, c in zip(low, counts, high, strict=True))
    assert any(sum(low) for low in before)


@pytest.mark.usefixtures("standing")
def test_addresses_are_those_that_drgn_computes(guest: Guest, machine: qvmi.SyncMachine) -> None:
    program = machine.drgn()
    offsets = drgn.Object(
        program,
        program.array_type(program.int_type("unsigned long", 8, is_signed=False), 64),
        address=program.symbol("__per_cpu_offset").address,
    )
    for name in ("runqueues", "kstat", "cpu_number"):
        base = machine.guest.kernel.symbols.find(name)
        if base is None:
            continue
        for cpu in range(guest.config.cpus):
            wanted = (base + offsets[cpu].value_()) % (1 << 64)
            assert machine.guest.per_cpu_address(name, cpu) == wanted


@pytest.mark.usefixtures("standing")
def test_values_are_those_that_drgn_reads(
    guest: Guest, machine: qvmi.SyncMachine, proof_count: Callable[[int], None]
) -> None:
    if guest.config.kernel == NO_VARIABLES:
        untyped = machine.guest.per_cpu("runqueues").items
        assert {row.type for row in untyped} == {""}
        assert all(len(str(row.value)) == 2 * row.size for row in untyped)
        return
    program = machine.drgn()
    compared = 0
    for name in COMPARED:
        if machine.guest.kernel.symbols.find(name) is None:
            continue
        rows = {row.cpu: row for row in machine.guest.per_cpu(name)}
        assert set(rows) == set(for_each_possible_cpu(program))
        for cpu, row in rows.items():
            true = per_cpu(program[name], cpu)
            assert row.address == true.address_
            assert row.size == drgn.sizeof(true)
            assert row.value == true.value_()
        compared += 1
    assert compared >= FEWEST_COMPARED
    proof_count(compared)


def test_what_is_no_such_variable_or_cpu_is_said_so(
    guest: Guest, machine: qvmi.SyncMachine
) -> None:
    with pytest.raises(SymbolNotFound, match="no_such_variable"):
        machine.guest.per_cpu("no_such_variable")
    with pytest.raises(SymbolsError, match="one variable for all CPUs"):
        machine.guest.per_cpu("init_task")
    with pytest.raises(UsageError, match=f"no CPU {guest.config.cpus}"):
        machine.guest.per_cpu("kstat", guest.config.cpus)
    with pytest.raises(UsageError, match="no CPU 4711"):
        machine.guest.per_cpu_address("kstat", 4711)
    (row,) = machine.guest.per_cpu("kstat", 1)
    assert row.cpu == 1
