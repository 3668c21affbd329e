"""Registers as the human monitor prints them: every layout, and text that is none."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.arch.x86_64 import Registers, parse_registers, registers_of_stub
from qvmi.errors import GdbstubProtocolError, QmpProtocolError
from tests.wire.transcript import NAMES, Transcript

LINUX = Transcript.load("linux").printed("info registers -a")

# What QEMU 10.1 prints of a vCPU with APX and AVX-512, per target/i386/cpu-dump.c.
NEWEST = (
    "\nCPU#7\n"
    "RAX=0000000000000001 RBX=0000000000000002 RCX=0000000000000003 RDX=0000000000000004\n"
    "RSI=0000000000000005 RDI=0000000000000006 RBP=0000000000000007 RSP=0000000000000008\n"
    "R8 =0000000000000009 R9 =000000000000000a R10=000000000000000b R11=000000000000000c\n"
    "R12=000000000000000d R13=000000000000000e R14=000000000000000f R15=ffffffffffffffff\n"
    "R16=1000000000000000 R17=1000000000000000 R18=1000000000000000 R19=1000000000000000\n"
    "R28=1000000000000000 R29=1000000000000000 R30=1000000000000000 R31=1000000000000000\n"
    "RIP=ffffffff81000000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=1 HLT=0\n"
    + "".join(f"{name} =0010 00007fff12345000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\n"
              for name in ("ES", "CS", "SS", "DS", "FS", "GS"))
    + "LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\n"
    "TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl\n"
    "GDT=     fffffe0000001000 0000007f\n"
    "IDT=     fffffe0000000000 00000fff\n"
    "CR0=80050033 CR2=00007f0000000000 CR3=0000000100836000 CR4=00771ef0\n"
    "DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \n"
    "DR6=00000000fffe0ff0 DR7=0000000000000400\n"
    "CCS=0000000000000000 CCD=0000000000000000 CCO=EFLAGS\n"
    "EFER=0000000000000d01\n"
    "FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\n"
    "Opmask00=0000000000000000 Opmask01=0000000000000000 Opmask02=0000000000000000\n"
    "ZMM00=" + " ".join(["0000000000000000"] * 8) + "\n"
)  # fmt: skip


def compatibility_mode() -> str:
    """32-bit code under a 64-bit kernel: short general registers and bases, long CR2 and tables."""
    short = Transcript.load("pc_32_bit").printed("info registers -a")
    wide = re.search(r"GDT=.*?DR0", NEWEST, re.DOTALL)
    assert wide is not None
    return re.sub(r"GDT=.*?DR0", wide[0], short, flags=re.DOTALL).replace(
        "EFER=0000000000000000", "EFER=0000000000000d01"
    )


def printed_again(vcpu: Registers) -> list[str]:
    """What QEMU prints of 64-bit code, written from the values that were read."""
    long = {"RAX": vcpu.rax, "RBX": vcpu.rbx, "RCX": vcpu.rcx, "RDX": vcpu.rdx, "RSI": vcpu.rsi}
    long |= {"RDI": vcpu.rdi, "RBP": vcpu.rbp, "RSP": vcpu.rsp, "RIP": vcpu.rip, "CR2": vcpu.cr2}
    long |= {"CR3": vcpu.cr3, "EFER": vcpu.efer}
    extended = [vcpu.r8, vcpu.r9, vcpu.r10, vcpu.r11, vcpu.r12, vcpu.r13, vcpu.r14, vcpu.r15]
    short = {"RFL": vcpu.rflags, "CR0": vcpu.cr0, "CR4": vcpu.cr4}
    selectors = {"ES": vcpu.es, "CS": vcpu.cs, "SS": vcpu.ss, "DS": vcpu.ds}
    return [
        *(f"{name}={value:016x}" for name, value in long.items()),
        *(f"R{number:<2}={value:016x}" for number, value in enumerate(extended, start=8)),
        *(f"{name}={value:08x}" for name, value in short.items()),
        *(f"{name} ={value:04x} " for name, value in selectors.items()),
        f"FS ={vcpu.fs:04x} {vcpu.fs_base:016x} ",
        f"GS ={vcpu.gs:04x} {vcpu.gs_base:016x} ",
        f"GDT=     {vcpu.gdt_base:016x} {vcpu.gdt_limit:08x}\n",
        f"IDT=     {vcpu.idt_base:016x} {vcpu.idt_limit:08x}\n",
        f"CPL={vcpu.cpl:d} ",
        f"SMM={vcpu.smm:d} HLT={vcpu.halted:d}\n",
    ]


def test_reads_every_register_of_every_vcpu_in_64_bit_code() -> None:
    vcpus = parse_registers(LINUX)
    dumps = LINUX.split("CPU#")[1:]
    assert [f"{vcpu.index}" for vcpu in vcpus] == [dump[0] for dump in dumps] == ["0", "1"]
    for vcpu, dump in zip(vcpus, dumps, strict=True):
        assert [part for part in printed_again(vcpu) if part not in dump] == []
        assert vcpu.kernel_gs_base is None


def test_tells_five_level_paging_and_long_mode_by_their_bits() -> None:
    # Intel SDM volume 3A: CR0.PG is bit 31, CR4.LA57 bit 12, EFER.LMA bit 10.
    (vcpu,) = parse_registers(NEWEST)
    assert (vcpu.paging, vcpu.long_mode, vcpu.la57) == (True, True, True)
    for was, becomes, expected in (
        ("CR0=80050033", "CR0=00050033", (False, True, True)),
        ("CR4=00771ef0", "CR4=00770ef0", (True, True, False)),
        ("EFER=0000000000000d01", "EFER=0000000000000901", (True, False, True)),
    ):
        (vcpu,) = parse_registers(NEWEST.replace(was, becomes))
        assert (vcpu.paging, vcpu.long_mode, vcpu.la57) == expected


def test_reads_32_bit_code() -> None:
    (vcpu,) = parse_registers(Transcript.load("pc_32_bit").printed("info registers -a"))
    assert (vcpu.rax, vcpu.rbx, vcpu.rcx, vcpu.rdx) == (
        *(0x80000001, 0xB0000002, 0xC0000003, 0xD0000004),
    )
    assert (vcpu.rsi, vcpu.rdi, vcpu.rbp, vcpu.rsp) == (
        *(0x50000005, 0xD1000006, 0xB9000007, 0x59000008),
    )
    assert vcpu.halted
    assert (vcpu.cr0, vcpu.paging, vcpu.long_mode) == (0x11, False, False)
    assert vcpu.gdt_base == 0xC02B8
    assert (vcpu.r8, vcpu.r15) == (None, None)
    assert (vcpu.fs_base, vcpu.gs_base) == (0, 0)


def test_reads_16_bit_code() -> None:
    (vcpu,) = parse_registers(Transcript.load("pc").printed("info registers -a"))
    assert (vcpu.rip, vcpu.cs, vcpu.es) == (0xB7B9, 0xF000, 0xD980)
    assert (vcpu.rsp, vcpu.idt_limit) == (0x6F94, 0x3FF)


def test_reads_vcpus_that_have_not_begun() -> None:
    first, second = parse_registers(Transcript.load("q35").printed("info registers -a"))
    assert (first.rip, first.cs, first.halted) == (0xFFF0, 0xF000, False)
    assert (second.rip, second.halted) == (0xFFF0, True)


def test_segment_bases_are_unknown_where_qemu_prints_half_of_them() -> None:
    (vcpu,) = parse_registers(compatibility_mode())
    assert (vcpu.long_mode, vcpu.rax, vcpu.cr3) == (True, 0x80000001, 0x100836000)
    assert (vcpu.fs_base, vcpu.gs_base, vcpu.r8) == (None, None, None)


def test_reads_what_newer_cpus_print_besides() -> None:
    (vcpu,) = parse_registers(NEWEST)
    assert (vcpu.index, vcpu.r15, vcpu.rip) == (7, (1 << 64) - 1, 0xFFFFFFFF81000000)
    assert (vcpu.gs_base, vcpu.smm) == (0x7FFF12345000, True)


def test_line_ends_of_the_terminal_make_no_difference() -> None:
    assert parse_registers(LINUX.replace("\n", "\r\n")) == parse_registers(LINUX)


@pytest.mark.parametrize(
    "field",
    [
        "RAX",
        "R8 ",
        "R15",
        "RIP",
        "RFL",
        "CPL",
        "SMM",
        "HLT",
        "ES ",
        "GS ",
        "GDT",
        "IDT",
        "CR0",
        "CR2",
        "CR3",
        "CR4",
        "EFER",
    ],
)
def test_names_the_vcpu_when_a_register_is_missing(field: str) -> None:
    second = LINUX.index("CPU#1")
    text = LINUX[:second] + LINUX[second:].replace(f"{field}=", "???=", 1)
    with pytest.raises(QmpProtocolError, match="CPU#1"):
        parse_registers(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown command: 'info registers'\n",
        "\nCPU#0\n PC=ffffb8a5b0d3ec5c X00=0000000000000000\nPSTATE=600000c5 -ZC- EL1h\n",
        LINUX + LINUX,
        NEWEST.replace("CR3=0000000100836000", "CR3=00000001008360000"),
        NEWEST.replace("CR3=0000000100836000", "CR3=g000000100836000"),
        "\nCPU#0\n" * 5000,
        "x" * ((10 << 20) + 1),
    ],
    ids=["nothing", "refusal", "arm64", "twice", "17 digits", "no hex", "5000 vCPUs", "too long"],
)
def test_refuses_text_that_tells_of_no_x86_vcpu(text: str) -> None:
    with pytest.raises(QmpProtocolError):
        parse_registers(text)


@given(
    name=st.sampled_from(NAMES),
    cut=st.tuples(st.integers(0, 3000), st.integers(0, 60)),
    put=st.text(alphabet="=0123456789abcdefxCPU#RIES \r\n", max_size=20),
)
def test_damaged_text_is_refused_or_read_never_worse(
    name: str, cut: tuple[int, int], put: str
) -> None:
    text = Transcript.load(name).printed("info registers -a")
    damaged = text[: cut[0]] + put + text[sum(cut) :]
    try:
        vcpus = parse_registers(damaged)
    except QmpProtocolError:
        return
    assert all(0 <= vcpu.cr3 < 1 << 64 for vcpu in vcpus)


STUB_NAMES = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip ss ds es fs gs fs_base gs_base"
    " cr2 cr3 cr4 cr8 mxcsr"
)
STUB = dict.fromkeys(STUB_NAMES.split(), 7) | {
    "eflags": 0x246,
    "cs": 0x33,
    "k_gs_base": 0xFFFF888000000000,
    "cr0": 0x80050033,
    "efer": 0xD01,
}


def test_the_stubs_registers_are_those_of_the_same_names() -> None:
    vcpu = registers_of_stub(5, STUB)
    assert (vcpu.index, vcpu.rax, vcpu.r15, vcpu.rflags, vcpu.cpl) == (5, 7, 7, 0x246, 3)
    assert vcpu.kernel_gs_base == 0xFFFF888000000000
    assert vcpu.long_mode
    # What the stub does not tell is not made up.
    assert (vcpu.gdt_base, vcpu.idt_base, vcpu.idt_limit, vcpu.smm, vcpu.halted) == (None,) * 5


def test_outside_of_long_mode_the_stubs_upper_registers_mean_nothing() -> None:
    vcpu = registers_of_stub(0, STUB | {"efer": 0, "cr0": 0x10, "cs": 0xF003})
    assert (vcpu.r8, vcpu.r15, vcpu.cpl) == (None, None, 0)
    assert registers_of_stub(0, STUB | {"eflags": 0x20246, "cs": 0x1000}).cpl == 3


def test_a_stub_without_a_register_is_an_error() -> None:
    with pytest.raises(GdbstubProtocolError, match="cr3"):
        registers_of_stub(0, {name: value for name, value in STUB.items() if name != "cr3"})
