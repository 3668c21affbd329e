"""What root may beyond other users, given up for good but for one right.

References: capabilities(7), prctl(2) PR_CAPBSET_DROP, capset(2), Linux ``include/uapi/linux/capability.h``.
"""

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError

__all__ = ["give_up_capabilities"]

_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")
_CAPBSET_DROP: Final = 24
"""``PR_CAPBSET_DROP``."""
_VERSION: Final = 0x20080522
"""``_LINUX_CAPABILITY_VERSION_3``: two words of 32 bits for each set."""
_DAC_OVERRIDE: Final = 1
"""It is kept: Python may lie in a folder that only another user can enter, as below sudo."""


def give_up_capabilities() -> None:
    """This gives up what root may, for this process and those that it starts; others have nothing to give up.

    A process that could open a file by its handle, enter another's namespaces or raise its own limits
    would be held by none of them.

    Raises:
        UsageError: the kernel refuses.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        last = int(_LAST.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{_LAST}: cannot be read: {error}") from error
    for number in range(last + 1):
        if number != _DAC_OVERRIDE:
            # Where it was not there to begin with, the kernel refuses; what is left is set below.
            libc.prctl(_CAPBSET_DROP, number, 0, 0, 0)
    kept = 1 << _DAC_OVERRIDE
    header = struct.pack("=Ii", _VERSION, 0)
    sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    if libc.capset(header, sets) != 0 and libc.capset(header, bytes(len(sets))) != 0:
        raise UsageError(f"capset: {os.strerror(ctypes.get_errno())}")
