"""The command line that starts gdb on a guest.

References: GDB manual, "Choosing Modes", "Auto-loading"; GDB ``solib-svr4.c``, ``linux-thread-db.c``: what
gdb looks for in a program of its host's system, which a guest's kernel is not.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError

__all__ = ["ending_with_parent", "gdb_command"]

_GDB: Final = "gdb"

_BEFORE_SYMBOLS: Final = (
    # The names are the guest's: nothing reads more into them than they say.
    "set demangle-style none",
    # A kernel has no shared libraries or threads library for gdb to look up on the host.
    "set osabi none",
    "set auto-load libthread-db off",
    "set auto-load python-scripts off",
    "set auto-load gdb-scripts off",
    # Nobody is asked over the network for the sources of a guest's kernel.
    "set debuginfod enabled off",
)
_BEFORE_TARGET: Final = (
    # QEMU answers at once, but for the seconds for which it may hold its own lock.
    "set remotetimeout 10",
    # A kernel's stack has no more; without unwind tables gdb may follow what is no stack at all.
    "set backtrace limit 256",
    # A guest can call a function what it likes, and these would end each backtrace.
    "set backtrace past-main on",
    "set backtrace past-entry on",
)


def gdb_command(
    socket: Path, symbols: Path | None, *, arguments: Sequence[str] = (), init: bool = True
) -> list[str]:
    """This is gdb's path and arguments, which connect it before it does anything else.

    Args:
        socket: what it connects to.
        symbols: the file of names; None for none.
        arguments: more of gdb's own.
        init: whether the user's own ``.gdbinit`` is read.

    Raises:
        UsageError: there is no gdb; says what to install.
    """
    program = shutil.which(_GDB)
    if program is None:
        raise UsageError("gdb is not there: install it, as with `apt install gdb`")
    words = [program, "-q", *(() if init else ("-nx",))]
    for line in _BEFORE_SYMBOLS:
        words += ["-iex", line]
    words += [] if symbols is None else [os.fspath(symbols)]
    for line in (*_BEFORE_TARGET, f"target remote {socket}"):
        words += ["-ex", line]
    return [*words, *arguments]


def ending_with_parent(lifeline: Path, command: Sequence[str]) -> list[str]:
    """This is the same command, for a process that ends when this one does."""
    return [sys.executable, "-I", "-S", os.fspath(lifeline), str(os.getpid()), *command]
