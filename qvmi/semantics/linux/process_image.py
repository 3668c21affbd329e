"""What a debugger wants of one process besides the list of its memory: bytes, registers, how it began."""

from functools import cached_property

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Process, Thread
from qvmi.semantics.linux.processes.process_memory import ProcessMemory
from qvmi.semantics.linux.stacks.user_registers import UserRegisters
from qvmi.semantics.linux.tasks.mm import auxiliary_vector, user_space
from qvmi.semantics.rows.process_memory import MemoryPiece
from qvmi.symbols.layout import Symbols

__all__ = ["ProcessImage"]


class ProcessImage:
    """This reads one process.

    Args:
        kernel: the kernel's address space.
        symbols: of the kernel.
        memory: knows where the content of a piece is.
        process: which one.

    Attributes:
        space: its address space.

    Raises:
        WalkFailed: it is gone, or has no memory of its own.
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(
        self, kernel: AddressSpace, symbols: Symbols, *, memory: ProcessMemory, process: Process
    ) -> None:
        self.space = user_space(kernel, symbols, process.address)
        self._kernel = kernel
        self._symbols = symbols
        self._memory = memory
        self._process = process

    def read(self, piece: MemoryPiece, va: Va, size: int) -> bytes:
        """This reads a part of a piece that is in memory or in the page cache.

        Raises:
            MemoryFault: it is not there any more.
        """
        return self._memory.read(self.space, piece, va, size)

    def registers(self, thread: Thread) -> tuple[int, ...] | None:
        """These are the registers with which a thread left user mode, as ``elf_gregset_t`` has them.

        Returns:
            None where a vCPU has them, as it runs the thread, and where none are found.
        """
        return self._registers.of(thread.address)

    def auxiliary_vector(self) -> tuple[int, ...]:
        """This is what its program was given when it began, as pairs of a type and a value."""
        return auxiliary_vector(self._kernel, self._symbols, self._process.address)

    @cached_property
    def _registers(self) -> UserRegisters:
        return UserRegisters(self._kernel, self._symbols)
