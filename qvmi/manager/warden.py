"""A program of its own that runs a codepack's process and lets nothing of it outlive it.

It is run by path, ``python -I -S warden.py PARENT UID GID HIDDEN PROGRAM [ARGUMENT…]`` (-1 for no other
uid; paths in HIDDEN are joined by newlines), so it imports nothing of qvmi. Where the kernel allows it, the
codepack's process lives in a pid namespace, of which the kernel itself leaves nothing, and in a mount
namespace where nothing is at the hidden paths. Elsewhere this becomes the parent of whatever that process
starts and leaves behind, daemons included, and kills them. It does so when the process ends, when the manager
does or says so (SIGTERM); then it ends as the process has ended.

References: pid_namespaces(7), user_namespaces(7), mount_namespaces(7), mount(2); prctl(2)
PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG; kill(2); proc(5); getrlimit(2)
RLIMIT_NPROC.
"""

import ctypes
import mmap
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_BIND, MS_REC, MS_SLAVE = 1 << 12, 1 << 14, 1 << 19

AWAITED = (signal.SIGCHLD, signal.SIGTERM)
STANDARD = (0, 1, 2)
NOT_STARTED = 126
"""As shells say it of a program that cannot be run."""
MAX_TASKS = 256
"""Processes and threads at a time of a uid that nobody else has; a codepack has some ten. The kernel counts
those of a user, so a uid that is others', too, cannot be held to it."""
MAX_ROUNDS = 1000
"""Rounds of killing: each ends all there are. What the kernel does not end by then, it never may."""
ROUND_S = 0.05
"""Longest wait for one that was killed before they are looked through again."""


def main(arguments: list[str]) -> None:
    """This runs the program until it ends, and ends as it has, with nothing of it left."""
    parent, uid, gid = map(int, arguments[:3])
    # Held back until they are waited for, so that none comes too early to be noticed.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    ask(PR_SET_PDEATHSIG, signal.SIGTERM)
    ask(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        sys.exit("the parent ended before this began")
    inside = enter_namespaces(arguments[3].split("\n"))
    told = mmap.mmap(-1, mmap.PAGESIZE)
    told[:4] = int(signal.SIGKILL).to_bytes(4, "little")
    warden = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        if inside:
            begin_namespace(arguments[4:], warden, uid, gid, told)
        become(arguments[4:], warden, uid, gid)
    let_go()
    status = watch(child)
    if inside:
        end_as(int.from_bytes(told[:4], "little"))
    end_all(uid)
    end_as(status)


def enter_namespaces(hidden: list[str]) -> bool:
    """This makes namespaces that the next child lives in, and tells whether there are some.

    It is tried by a child first: a kernel may allow a user namespace that then is of no use.
    """
    trial = os.fork()
    if trial == 0:
        os._exit(0 if unshared() else 1)
    if os.waitpid(trial, 0)[1] != 0 or not unshared():
        return False
    # Else what is hidden would be hidden from everybody. Whether it worked is tried from within.
    if libc().mount(None, b"/", None, MS_REC | MS_SLAVE, None) == 0:
        for path in filter(None, hidden):
            libc().mount(b"/dev/null", os.fsencode(path), None, MS_BIND, None)
    return True


def unshared() -> bool:
    """This makes the namespaces, without root's rights in a user namespace where everybody keeps his uid."""
    uid, gid = os.geteuid(), os.getegid()
    if libc().unshare(CLONE_NEWPID | CLONE_NEWNS | (CLONE_NEWUSER if uid else 0)) != 0:
        return False
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    try:
        for name, text in maps.items() if uid else ():
            Path("/proc/self", name).write_text(text, encoding="ascii")
    except OSError:
        return False
    return True


def begin_namespace(program: list[str], warden: int, uid: int, gid: int, told: mmap.mmap) -> None:
    """This is the first process of a namespace: with its end the kernel ends all the others."""
    ask(PR_SET_PDEATHSIG, signal.SIGKILL)
    first = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        become(program, first, uid, gid)
    if not has_ended(warden):
        let_go()
        told[:4] = watch(child).to_bytes(4, "little")
    os._exit(0)


def become(program: list[str], keeper: int, uid: int, gid: int) -> None:
    """This is the process of the codepack from here on; it dies with whoever keeps it."""
    try:
        os.setsid()
        if uid >= 0:
            bound_tasks()
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        ask(PR_SET_PDEATHSIG, signal.SIGKILL)  # behind the change of uid, which clears it
        if not has_ended(keeper):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
            os.execv(program[0], program)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        print(f"{program[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the manager reads it
    os._exit(NOT_STARTED)


def bound_tasks() -> None:
    """This keeps who is about to get a uid of its own from filling the host with processes."""
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if most == resource.RLIM_INFINITY or most > MAX_TASKS:
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_TASKS, MAX_TASKS))


def has_ended(process: int) -> bool:
    """This tells whether a process has ended, by its descriptor: numbers are others in a namespace."""
    return bool(select.select([process], [], [], 0)[0])


def let_go() -> None:
    """This closes what is the codepack's: who reads from it is to see its end, and not this one's."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in STANDARD:
        os.dup2(nothing, standard)
    for held in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if held > STANDARD[-1]:
            with suppress(OSError):  # what was opened to list them is closed already
                os.close(held)


def watch(child: int) -> int:
    """This buries whoever ends, until the child does or this is told to end; gives the child's status."""
    while True:
        if signal.sigwait(AWAITED) == signal.SIGTERM:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status
            if pid == 0:
                break


def end_all(uid: int) -> None:
    """This kills all that is left; each orphan becomes a child of this, so none is forgotten."""
    for _ in range(MAX_ROUNDS):
        if uid > 0:
            kill_all_of(uid)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        signal.sigtimedwait((signal.SIGCHLD,), ROUND_S)


def kill_all_of(uid: int) -> None:
    """This kills whatever runs as a uid that nobody else has, at once, however fast it forks."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setresuid(uid, uid, uid)
            if os.getresuid() == (uid, uid, uid):
                os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def children() -> Iterator[int]:
    """These are the children of this process that have not ended."""
    me = str(os.getpid()).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if parent == me and state != b"Z":
            yield int(process.name)


def end_as(status: int) -> NoReturn:
    """This ends in the way in which the child has ended."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def ask(option: int, value: int) -> None:
    """This asks the kernel for something that it does for the process."""
    if libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def libc() -> ctypes.CDLL:
    """This is the C library."""
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
