"""The registers of a vCPU of either architecture, as one type."""

from typing import TypeAlias

from qvmi.arch import aarch64, x86_64
from qvmi.arch.register_dump import INFO_REGISTERS

__all__ = ["INFO_REGISTERS", "Registers", "parse_registers"]

Registers: TypeAlias = x86_64.Registers | aarch64.Registers
"""Who needs more than what both have, asks which one it is."""


def parse_registers(text: str) -> tuple[Registers, ...]:
    """This reads the answer to ``info registers -a`` of a machine of either architecture.

    Returns:
        The vCPUs in the order QEMU printed them; at least one.

    Raises:
        QmpProtocolError: a register is missing, or the text is not about vCPUs of either.
    """
    if aarch64.is_dump(text):
        return aarch64.parse_registers(text)
    return x86_64.parse_registers(text)
