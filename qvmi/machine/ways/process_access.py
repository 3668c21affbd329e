"""Why another process's memory may not be read here, and what would change that.

References: Linux ptrace(2), "Ptrace access mode checking"; Documentation/admin-guide/LSM/Yama.rst.
"""

import os
from pathlib import Path
from typing import Final

__all__ = ["how_to_read", "way_out"]

_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_ANY: Final = 0
_PRIVILEGED: Final = 2


def how_to_read(pid: int) -> str:
    """This is what helps whoever may not read a process's memory, as far as /proc tells."""
    try:
        owner: int | None = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        owner = None
    try:
        scope = int(_SCOPE.read_text())
    except (OSError, ValueError):
        scope = _ANY
    return way_out(os.geteuid(), owner, scope)


def way_out(uid: int, owner: int | None, scope: int) -> str:
    """This is what helps.

    Args:
        uid: that qvmi runs as.
        owner: of QEMU's process, root for one that protects itself; None where it is not seen.
        scope: ``kernel.yama.ptrace_scope``, 0 where there is none.
    """
    if owner is None:
        return "QEMU's process cannot be seen from here: run qvmi outside of this container"
    if uid == 0:
        return "root may not either: give qvmi CAP_SYS_PTRACE, as in a container, or run it outside"
    if owner != uid:
        return f"QEMU's process belongs to uid {owner}: run qvmi as that user, or as root"
    if scope >= _PRIVILEGED:
        return f"kernel.yama.ptrace_scope is {scope}: run qvmi as root"
    if scope > _ANY:
        return f"kernel.yama.ptrace_scope is {scope}: set it to 0 with sysctl, or run qvmi as root"
    return "run qvmi as the user QEMU runs as, or as root"
