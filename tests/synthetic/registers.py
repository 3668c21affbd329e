"""The registers of a vCPU, as far as a test cares."""

from dataclasses import replace

from qvmi.addr import Va
from qvmi.arch.x86_64 import Registers

__all__ = ["vcpu"]

_PAGING = 1 << 31 | 1  # CR0.PG and CR0.PE
_LONG_MODE = 1 << 10 | 1 << 8  # EFER.LMA and EFER.LME
_FIVE_LEVELS = 1 << 12  # CR4.LA57

_IDLE = Registers(
    index=0,
    rax=0,
    rbx=0,
    rcx=0,
    rdx=0,
    rsi=0,
    rdi=0,
    rbp=0,
    rsp=0,
    r8=0,
    r9=0,
    r10=0,
    r11=0,
    r12=0,
    r13=0,
    r14=0,
    r15=0,
    rip=Va(0),
    rflags=2,
    es=0,
    cs=0x10,
    ss=0x18,
    ds=0,
    fs=0,
    gs=0,
    fs_base=Va(0),
    gs_base=Va(0),
    kernel_gs_base=None,
    cr0=_PAGING,
    cr2=Va(0),
    cr3=0,
    cr4=0,
    efer=_LONG_MODE,
    gdt_base=Va(0),
    gdt_limit=0x7F,
    idt_base=Va(0),
    idt_limit=0xFFF,
    cpl=0,
    smm=False,
    halted=True,
)


def vcpu(  # noqa: PLR0913 - a test changes one or two of them
    cr3: int = 0,
    *,
    index: int = 0,
    five_levels: bool = False,
    paging: bool = True,
    long_mode: bool = True,
    smm: bool = False,
    cpl: int = 0,
    idt_base: int = 0,
) -> Registers:
    """This is an idle vCPU of a 64-bit kernel with these page tables."""
    return replace(
        _IDLE,
        index=index,
        cr0=_PAGING if paging else 1,
        cr3=cr3,
        cr4=_FIVE_LEVELS if five_levels else 0,
        efer=_LONG_MODE if long_mode else 0,
        smm=smm,
        cpl=cpl,
        idt_base=Va(idt_base),
    )
