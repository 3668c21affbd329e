"""The vCPUs of x86-64 guests, for tests that are about registers which no other guest has."""

from collections.abc import Sequence

from qvmi.arch.registers import Registers
from qvmi.arch.x86_64 import Registers as X86Registers

__all__ = ["x86_64_vcpu", "x86_64_vcpus"]


def x86_64_vcpus(vcpus: Sequence[Registers]) -> tuple[X86Registers, ...]:
    """This is the same vCPUs, which fails unless they are x86-64 ones."""
    return tuple(map(x86_64_vcpu, vcpus))


def x86_64_vcpu(vcpu: Registers) -> X86Registers:
    """This is one vCPU, which fails unless it is an x86-64 one."""
    assert isinstance(vcpu, X86Registers)
    return vcpu
