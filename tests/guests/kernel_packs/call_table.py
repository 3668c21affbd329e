"""Where the table of system calls has which, on each architecture."""

from typing import Final, NamedTuple

from tests.guests.kernel_packs.tampered_kernel import Tampered

__all__ = ["WORD", "CallTable"]


class Numbers(NamedTuple):
    """System calls by the numbers that programs use: uapi/asm/unistd_64.h, uapi/asm-generic/unistd.h."""

    prefix: str
    read: int
    write: int
    execve: int
    unused: int


_X86_64: Final = Numbers("__x64_sys_", 0, 1, 59, 183)
_ARM64: Final = Numbers("__arm64_sys_", 63, 64, 221, 244)
WORD: Final = 8


class CallTable(NamedTuple):
    """This is the table of one kernel."""

    kernel: Tampered
    numbers: Numbers

    @classmethod
    def of(cls, kernel: Tampered) -> "CallTable":
        """This is the one that a kernel has."""
        is_x86_64 = _X86_64.prefix + "read" in kernel.symbols
        return cls(kernel, _X86_64 if is_x86_64 else _ARM64)

    def entry(self, number: int) -> int:
        """This is the place of an entry."""
        return self.kernel.symbols["sys_call_table"] + number * WORD

    def handler(self, name: str) -> int:
        """This is where a handler begins."""
        return self.kernel.symbols[self.numbers.prefix + name]
