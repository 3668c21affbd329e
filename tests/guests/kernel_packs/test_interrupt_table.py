"""Gates of the interrupt descriptor table, changed from outside and told by their addresses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from qvmi.addr import Va
from qvmi.arch.x86_64 import parse_registers
from qvmi.codepacks.detectors.interrupt_table import InterruptTable
from tests.guests.kernel_packs.gates import GATE, OVERFLOW, PAGE_FAULT, TIMER, gate_to
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, X86_64, Tampered

SYSTEM_CALL: Final = 0x80
EXCEPTIONS: Final = 32
GATES: Final = 256
PRESENT_AT: Final = 5
"""The byte of a gate whose highest bit says that it is present, Intel SDM volume 3A, figure 6-8."""

on_x86_64 = pytest.mark.parametrize("kernel", X86_64, indirect=True)
"""Others have no such table: the vectors of arm64 are text."""


@pytest.fixture
def table(kernel: Tampered) -> int:
    return kernel.symbols["idt_table"]


def test_a_table_as_it_was_made_has_no_finding(kernel: Tampered) -> None:
    pack = InterruptTable()
    assert kernel.look(pack) == []
    assert kernel.look(pack) == []
    listed = len(kernel.linux.interrupts())
    assert listed == (GATES if "idt_table" in kernel.symbols else 0)


@on_x86_64
@pytest.mark.parametrize("vector", [OVERFLOW, PAGE_FAULT, TIMER])
def test_a_gate_that_was_set_and_is_not_present_any_more_is_told(
    kernel: Tampered, table: int, vector: int
) -> None:
    place = table + vector * GATE
    good = kernel.read(place, GATE)
    absent = bytearray(good)
    absent[PRESENT_AT] &= 0x7F
    found = []
    for gate in (bytes(absent), bytes(GATE)):
        with kernel.altered(place, gate):
            found += kernel.look(InterruptTable())
    assert [one.evidence[0].address for one in found] == [place, place]
    assert all("it is not present" in one.claim for one in found)
    if vector < EXCEPTIONS:
        assert [one.evidence[0].data for one in found] == [absent.hex(), "00" * GATE]
        assert {one.evidence[-1].data for one in found} == {good.hex()}


@on_x86_64
def test_gates_that_a_kernel_has_not_set_yet_are_no_finding(kernel: Tampered, table: int) -> None:
    few = bytearray(GATES * GATE)
    for vector in (*range(EXCEPTIONS), SYSTEM_CALL):
        at = vector * GATE
        few[at : at + GATE] = kernel.read(table + at, GATE)
    pack = InterruptTable()
    for starting in (bytes(GATES * GATE), bytes(few)):
        with kernel.altered(table, starting):
            assert kernel.look(pack) == []


@on_x86_64
def test_of_every_exception_the_bytes_are_told_that_the_kernel_itself_had_put_there(
    kernel: Tampered, table: int, proof_count: Callable[[int], None]
) -> None:
    whole = kernel.read(table, EXCEPTIONS * GATE)
    good = {table + at: whole[at : at + GATE].hex() for at in range(0, len(whole), GATE)}
    evil = {place: gate_to(kernel, place, NOBODYS, dpl=3).hex() for place in good}
    with kernel.altered(table, bytes.fromhex("".join(evil.values()))):
        found = kernel.look(InterruptTable())
    assert len(found) == EXCEPTIONS
    told = [one.evidence for one in found if len(one.evidence) > 2]
    for gate, _, right in told:
        assert gate.address is not None
        assert (gate.present, gate.data) == (True, evil[gate.address])
        assert (right.present, right.address) == (False, gate.address)
        assert right.data == good[gate.address]
    proof_count(len(told))


@on_x86_64
def test_of_other_interrupts_and_of_a_kernel_that_starts_no_right_bytes_are_told(
    kernel: Tampered, table: int
) -> None:
    timer, overflow = table + TIMER * GATE, table + OVERFLOW * GATE
    with kernel.altered(timer, gate_to(kernel, timer, NOBODYS)):
        [of_interrupt] = kernel.look(InterruptTable())
    # The kernel sets the gates of interrupts behind all others, but for a few.
    starting = bytes((GATES - EXCEPTIONS) * GATE)
    with (
        kernel.altered(table + EXCEPTIONS * GATE, starting),
        kernel.altered(overflow, gate_to(kernel, overflow, NOBODYS)),
    ):
        [of_start] = kernel.look(InterruptTable())
    for finding in (of_interrupt, of_start):
        assert [one.data for one in finding.evidence] == ["", ""]


@on_x86_64
def test_a_vcpu_with_a_table_of_its_own_is_told_and_its_gates_are_looked_at(
    kernel: Tampered, table: int
) -> None:
    """No program outside can load IDTR: its registers are told as QEMU would tell them then."""
    said = parse_registers(kernel.guest.monitor.human("info registers -a"))
    copy = Va(kernel.symbols["sys_call_table"] & ~0xFFF)  # some other page
    moved = (replace(said[0], idt_base=copy), *said[1:])
    linux = kernel.linux.over(replace(kernel.linux.view, vcpus=moved))
    place = table + OVERFLOW * GATE
    gates = bytearray(kernel.read(table, GATES * GATE))
    gates[OVERFLOW * GATE : (OVERFLOW + 1) * GATE] = gate_to(kernel, place, NOBODYS)
    with kernel.altered(copy, bytes(gates)):
        found = list(InterruptTable().inspect(linux, kernel.memory))
    assert len(said) > 1
    assert [one.evidence[0].view for one in found] == ["IDTR of vCPU 0"] * 2
    assert {one.evidence[0].address for one in found} == {copy, copy + OVERFLOW * GATE}


@on_x86_64
def test_a_table_full_of_lies_costs_a_finding_a_gate(kernel: Tampered, table: int) -> None:
    with kernel.altered(table, b"\xa5" * GATES * GATE):
        assert len(kernel.look(InterruptTable())) == GATES
