"""A program of its own that becomes another one which ends when the process that started it does.

It is run by path, ``python -I -S lifeline.py PID PROGRAM [ARGUMENT…]``, so it imports nothing of
qvmi. The signal is asked for here and not between fork and exec of the parent, where threads of the
parent may hold any lock. It comes when the *thread* that started this program ends.

References: prctl(2), PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """This asks for SIGKILL at the parent's death, and becomes the program."""
    parent, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the parent ended before this began")
    os.execv(program[0], program)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
