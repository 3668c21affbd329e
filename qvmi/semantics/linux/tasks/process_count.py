"""How many processes the kernel itself counts, beside those that its list shows.

References: Linux kernel/fork.c (``process_counts``, of which each CPU has its part: a process may be
counted up on one CPU and down on another), kernel/exit.c (``__unhash_process``: counted down, and taken off
the list, under the same lock).
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.percpu import PerCpu
from qvmi.symbols.layout import Symbols

__all__ = ["process_counter"]

_NAME: Final = "process_counts"
_LONG: Final = Struct("<Q")
_WRAPS: Final = 1 << 64


def process_counter(space: AddressSpace, symbols: Symbols) -> Callable[[], int] | None:
    """This makes what reads the count, which raises MemoryFault.

    Returns:
        None where this kernel does not tell it.
    """
    try:
        parts = PerCpu(space, symbols).copies(_NAME)
    except (SymbolsError, WalkFailed, MemoryFault):
        return None
    read = space.unpacker(_LONG)
    return lambda: sum(read(part)[0] for part in parts) % _WRAPS
