"""Runs one QEMU for a test and ends it, with its folder, when the test's process is gone for any reason.

The test holds the other end of this program's standard input; the kernel closes it whatever happens to
the test. If this program itself is killed, its QEMU gets SIGKILL from the kernel (PR_SET_PDEATHSIG,
through setpriv). A script of its own, so that it starts in a few milliseconds: ``python -I -S keeper.py
FOLDER QEMU ARGUMENT...``. It prints QEMU's process id; its exit status is QEMU's.
"""

import os
import select
import shutil
import signal
import sys


def main() -> int:
    """This waits for the first of two ends: the test's, or QEMU's own."""
    folder, command = sys.argv[1], sys.argv[2:]
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(f"{folder}/qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        guarded = ("setpriv", "--pdeathsig", "KILL", "--", *command)
        os.execvp(guarded[0], guarded)  # noqa: S606 - an argument list of our own, no shell wanted
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    ends = select.poll()
    ends.register(0, select.POLLIN)
    ends.register(os.pidfd_open(pid), select.POLLIN)
    ready = [fd for fd, _ in ends.poll()]
    if 0 in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if 0 not in ready:
        os.read(0, 1)  # QEMU ended by itself: its folder is kept until the test has read it
    shutil.rmtree(folder, ignore_errors=True)
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
