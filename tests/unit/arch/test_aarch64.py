"""Registers of aarch64 vCPUs by the names that QEMU's gdbstub gives them."""

import pytest

from qvmi.arch.aarch64 import SYSTEM_REGISTERS, registers_of_stub
from qvmi.errors import GdbstubProtocolError

CORE = {f"x{number}": 100 + number for number in range(31)} | {
    "sp": 0xFFFF800008003F00,
    "pc": 0xFFFF800008010000,
    "cpsr": 0x600000C5,  # EL1h with interrupts masked
}


def test_core_registers_are_in_order() -> None:
    vcpu = registers_of_stub(3, CORE)
    assert (vcpu.index, vcpu.x) == (3, tuple(range(100, 131)))
    assert (vcpu.sp, vcpu.pc) == (0xFFFF800008003F00, 0xFFFF800008010000)
    assert (vcpu.exception_level, vcpu.aarch32) == (1, False)
    assert (vcpu.ttbr1_el1, vcpu.t1sz, vcpu.paging) == (None, None, False)


def test_system_registers_have_both_of_qemus_names() -> None:
    # Arm ARM D19.2.139: T0SZ is bits 5..0 and T1SZ bits 21..16; Linux with 48 bits sets both to 16.
    system = {"TTBR1_EL1": 0x41000000, "TCR_EL1": 0x00000010_00100010, "SP_EL0": 7}
    old = registers_of_stub(0, CORE | system | {"SCTLR": 0x30D0198D, "VBAR": 0x800})
    new = registers_of_stub(0, CORE | system | {"SCTLR_EL1": 0x30D0198D, "VBAR_EL1": 0x800})
    assert old == new
    assert (new.ttbr1_el1, new.t0sz, new.t1sz, new.sp_el0) == (0x41000000, 16, 16, 7)
    assert new.paging
    assert new.vbar_el1 == 0x800
    assert {"TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "SP_EL0", "MAIR_EL1", "VBAR"} <= SYSTEM_REGISTERS


@pytest.mark.parametrize(
    ("cpsr", "level", "aarch32"),
    [(0x0, 0, False), (0x3C4, 1, False), (0x3C9, 2, False), (0x10, 0, True)],
)
def test_the_level_is_that_of_the_processor_state(cpsr: int, level: int, aarch32: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    vcpu = registers_of_stub(0, CORE | {"cpsr": cpsr})
    assert (vcpu.exception_level, vcpu.aarch32) == (level, aarch32)


def test_a_vcpu_without_its_general_registers_is_an_error() -> None:
    with pytest.raises(GdbstubProtocolError, match="no x30, cpsr"):
        registers_of_stub(0, {name: CORE[name] for name in CORE if name not in {"x30", "cpsr"}})
