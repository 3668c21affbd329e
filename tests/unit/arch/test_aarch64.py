"""Registers of aarch64 vCPUs, as QEMU's gdbstub names them and as its human monitor prints them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.arch import registers, x86_64
from qvmi.arch.aarch64 import SYSTEM_REGISTERS, Registers, parse_registers, registers_of_stub
from qvmi.errors import GdbstubProtocolError, QmpProtocolError
from tests.wire.transcript import Transcript

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


# ------------------------------------------------------------------------------- by the human monitor

LINUX = Transcript.load("linux_aarch64").printed("info registers -a")
# QEMU target/arm/cpu.c, arm_cpu_dump_state: what is printed while 32-bit code runs.
NARROW = """
CPU#0
R00=00000001 R01=00000002 R02=00000003 R03=00000004
R04=00000005 R05=00000006 R06=00000007 R07=00000008
R08=00000009 R09=0000000a R10=0000000b R11=0000000c
R12=0000000d R13=beef0010 R14=0000000f R15=00010a34
PSR=60000010 -ZC- A NS usr32
FPSCR: 00000000
"""


def test_general_registers_are_read_as_the_monitor_prints_them() -> None:
    vcpus = parse_registers(LINUX)
    printed = re.search(r"X00=([0-9a-f]{16})", LINUX)
    assert printed
    assert [(vcpu.index, len(vcpu.x)) for vcpu in vcpus] == [(0, 31), (1, 31)]
    assert vcpus[0].x[0] == int(printed[1], 16)
    assert vcpus[0].x[30] == int(re.findall(r"X30=([0-9a-f]{16})", LINUX)[0], 16)
    assert vcpus[1].pc == int(re.findall(r"PC=([0-9a-f]{16})", LINUX)[1], 16)
    assert {vcpu.exception_level for vcpu in vcpus} == {1}
    assert {(vcpu.ttbr1_el1, vcpu.sp_el0, vcpu.root_register) for vcpu in vcpus} == {(None,) * 3}


def test_32_bit_code_has_the_registers_that_it_can_see() -> None:
    (vcpu,) = parse_registers(NARROW)
    assert (vcpu.x, vcpu.sp, vcpu.pc) == (
        (*range(1, 14), 0xBEEF0010, 15),
        0xBEEF0010,
        0x10A34,
    )
    assert (vcpu.aarch32, vcpu.exception_level) == (True, 0)


def test_either_architecture_is_known_by_what_is_printed() -> None:
    x86 = Transcript.load("linux").printed("info registers -a")
    assert all(isinstance(vcpu, x86_64.Registers) for vcpu in registers.parse_registers(x86))
    for text in (LINUX, NARROW, LINUX.replace("\r", "")):
        assert all(isinstance(vcpu, Registers) for vcpu in registers.parse_registers(text))


@pytest.mark.parametrize("name", ["PC", "SP", "PSTATE", "X00", "X17", "X30"])
def test_names_the_vcpu_and_the_register_that_is_missing(name: str) -> None:
    second = LINUX.index("CPU#1")
    text = LINUX[:second] + LINUX[second:].replace(f"{name}=", "???=", 1)
    with pytest.raises(QmpProtocolError, match=f"CPU#1: no {name}"):
        parse_registers(text)


@given(
    cut=st.tuples(st.integers(0, 3000), st.integers(0, 60)),
    put=st.text(alphabet="=0123456789abcdefXPCSRTAE# \r\n", max_size=20),
    text=st.sampled_from([LINUX, NARROW]),
)
def test_damaged_text_is_refused_or_read_never_worse(
    cut: tuple[int, int], put: str, text: str
) -> None:
    damaged = text[: cut[0]] + put + text[sum(cut) :]
    try:
        vcpus = registers.parse_registers(damaged)
    except QmpProtocolError:
        return
    assert all(0 <= vcpu.pc < 1 << 64 for vcpu in vcpus if isinstance(vcpu, Registers))


# -------------------------------------------------------------------------------- the root of the kernel


@pytest.mark.parametrize(
    ("ttbr", "tcr", "root", "va_bits"),
    [
        # As Linux has them with 48 bits (read by gdb): an ASID in TTBR1 and its lowest bit CnP.
        (0x0002_0000_41AA_4001, 0x0150_01F5_B550_3510, 0x41AA_4000, 48),
        # The same kernel with 52 bits: TCR_EL1.DS is bit 59.
        (0x0002_0000_41AA_4001, 0x0950_01F6_B54C_350C, 0x41AA_4000, 52),
        # With DS bits 5..2 are bits 51..48 of the address (D19.2.146).
        (0x0000_0000_41AA_4024, 0x0950_01F6_B54C_350C, 0x0009_0000_41AA_4000, 52),
    ],
)
def test_the_root_is_what_the_register_means(ttbr: int, tcr: int, root: int, va_bits: int) -> None:
    vcpu = registers_of_stub(0, CORE | {"TTBR1_EL1": ttbr, "TCR_EL1": tcr})
    assert vcpu.upper_tables is not None
    found, geometry = vcpu.upper_tables
    assert (found, geometry.va_bits, geometry.half) == (root, va_bits, "upper")


@pytest.mark.parametrize(
    "system",
    [
        {},
        {"TTBR1_EL1": 0x41AA4000},
        {"TCR_EL1": 0x0950_01F6_B54C_350C},
        {"TTBR1_EL1": 0x41AA4000, "TCR_EL1": 3 << 30 | 16 << 16},  # pages of 64 KiB
        {"TTBR1_EL1": 0x41AA4000, "TCR_EL1": 2 << 30 | 5 << 16},  # 59 bits
    ],
)
def test_registers_that_do_not_tell_have_no_root(system: dict[str, int]) -> None:
    assert registers_of_stub(0, CORE | system).upper_tables is None
