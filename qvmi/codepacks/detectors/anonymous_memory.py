"""Which mappings of a process are memory that no file stands behind."""

from typing import Final

from qvmi.semantics.guest_os import MemoryMapping

__all__ = ["is_anonymous"]

_NAMES: Final = ("", "[heap]", "[stack]")
_NAMED: Final = "[anon:"
"""What a program calls such memory itself: ``PR_SET_VMA_ANON_NAME``."""


def is_anonymous(mapping: MemoryMapping) -> bool:
    """This tells whether a mapping is of no file, and none that the kernel itself has put there."""
    return not mapping.inode and (mapping.name in _NAMES or mapping.name.startswith(_NAMED))
