"""Per-CPU variables written by hand, true and false."""

import pytest

from qvmi.errors import SymbolsError, WalkFailed
from qvmi.semantics.linux.structures.percpu import PerCpu
from tests.synthetic.kernel_memory import KernelMemory

NOWHERE = 0x4141_4141_4141_4140
SIZE = 0x40
VARIABLE = 0x10
"""Where it lies in the first copy, which is at 0 as on x86-64 until 6.14."""


class Cpus:
    """This is memory with a copy of the variables for each of some CPUs."""

    def __init__(self, present: int = 0b1011) -> None:
        self.memory = KernelMemory()
        self.offsets = self.memory.allocate_bytes(8 * 64)
        self.count = self.memory.allocate_bytes(8)
        self.mask = self.memory.allocate_bytes(8)
        self.copies = [self.memory.allocate_bytes(SIZE) for _ in range(4)]
        self.memory.u32(self.count, len(self.copies))
        self.memory.u64(self.mask, present)
        for cpu, copy in enumerate(self.copies):
            self.memory.u64(self.offsets + 8 * cpu, copy)
            self.memory.u64(copy + VARIABLE, 0x1111 * (cpu + 1))
        self.memory.symbols.addresses |= {
            "__per_cpu_start": 0,
            "__per_cpu_end": SIZE,
            "__per_cpu_offset": self.offsets,
            "__cpu_possible_mask": self.mask,
            "nr_cpu_ids": self.count,
            "variable": VARIABLE,
        }

    @property
    def subject(self) -> PerCpu:
        return PerCpu(self.memory.space, self.memory.symbols)


def test_each_cpu_that_may_be_has_its_copy() -> None:
    cpus = Cpus()
    rows = cpus.subject.values("variable").rows
    assert {cpu: row.address for cpu, row in rows.items()} == {
        cpu: cpus.copies[cpu] + VARIABLE for cpu in (0, 1, 3)
    }
    assert [str(row.value)[:4] for row in rows.values()] == ["1111", "2222", "4444"]
    assert cpus.subject.address("variable", 3) == cpus.copies[3] + VARIABLE


def test_a_kernel_for_one_cpu_has_one_copy() -> None:
    cpus = Cpus()
    del cpus.memory.symbols.addresses["__per_cpu_offset"]
    cpus.memory.symbols.addresses["__per_cpu_start"] = cpus.copies[0]
    cpus.memory.symbols.addresses["__per_cpu_end"] = cpus.copies[0] + SIZE
    cpus.memory.symbols.addresses["variable"] = cpus.copies[0] + VARIABLE
    (row,) = cpus.subject.values("variable").rows.values()
    assert (row.cpu, row.address) == (0, cpus.copies[0] + VARIABLE)


@pytest.mark.parametrize("count", [0, 8193, 0xFFFF_FFFF])
def test_a_number_of_cpus_that_none_has_is_said_so(count: int) -> None:
    cpus = Cpus()
    cpus.memory.u32(cpus.count, count)
    with pytest.raises(WalkFailed, match=f"{count} CPUs"):
        cpus.subject.values("variable")


@pytest.mark.parametrize("name", ["nr_cpu_ids", "__cpu_possible_mask"])
def test_cpus_that_cannot_be_told_are_said_so(name: str) -> None:
    cpus = Cpus()
    cpus.memory.symbols.addresses[name] = NOWHERE
    with pytest.raises(WalkFailed):
        cpus.subject.values("variable")


def test_a_copy_that_is_nowhere_is_a_gap_and_hides_no_other() -> None:
    cpus = Cpus()
    cpus.memory.u64(cpus.offsets + 8, NOWHERE)
    found = cpus.subject.values("variable")
    assert list(found.rows) == [0, 3]
    assert [gap.structure for gap in found.gaps] == ["variable of CPU 1"]


def test_a_variable_of_all_cpus_is_none() -> None:
    cpus = Cpus()
    cpus.memory.symbols.addresses["common"] = SIZE
    with pytest.raises(SymbolsError, match="one variable for all CPUs"):
        cpus.subject.values("common")
