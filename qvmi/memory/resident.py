"""The guest's pages that count as this process's memory, for as long as it has them mapped.

References: madvise(2) (``MADV_DONTNEED`` of a shared mapping: the next access takes the page from the file).
"""

from contextlib import suppress
from mmap import MADV_DONTNEED

from qvmi.memory.physical import PhysicalMemory

__all__ = ["let_go"]


def let_go(memory: PhysicalMemory) -> None:
    """This unmaps the pages that were touched; whoever reads them again has them at once.

    The host maps sixteen pages for each one that is touched, so that a few reads here and there count as a
    great deal of memory. It is the guest's, and stays where it is.
    """
    for buffer in {id(window.buffer): window.buffer for window in memory.windows}.values():
        with suppress(ValueError, OSError):  # closed meanwhile, or of a kind that cannot
            buffer.madvise(MADV_DONTNEED)
