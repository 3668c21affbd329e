"""What the kernel lets nobody do with credentials: a process compared with itself before, or with its parent.

References: kernel/sys.c (``__sys_setresuid``: without CAP_SETUID each id becomes one of the others),
security/commoncap.c (``cap_capset``, ``cap_emulate_setxuid``: nothing is permitted that was not),
fs/exec.c (``begin_new_exec``: exec alone gives more), prctl(2) PR_SET_NO_NEW_PRIVS, seccomp(2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.semantics.guest_os import Credentials, Program

__all__ = ["Known", "gains", "is_root", "is_set_uid", "may_become_anyone", "unexplained_root"]

_CAP_SETGID: Final = 1 << 6
_CAP_SETUID: Final = 1 << 7
_SET_UID: Final = 0o4000
_FILTERED: Final = frozenset({"strict", "filter"})
_ROOT: Final = 0
_MAX_TOLD: Final = 8
"""Ids that are told in words; the evidence has no more."""


@dataclass(frozen=True, slots=True)
class Known:
    """This is what a process was allowed when it was seen.

    Args:
        credentials: as they were.
        exec_id: of the program that it ran.
        at: when that was, in seconds.
    """

    credentials: Credentials
    exec_id: int
    at: float


def users(its: Credentials) -> frozenset[int]:
    """These are the users that a process is in any respect."""
    return frozenset({its.uid, its.euid, its.suid, its.fsuid})


def _groups(its: Credentials) -> frozenset[int]:
    return frozenset({its.gid, its.egid, its.sgid, its.fsgid})


def is_root(its: Credentials) -> bool:
    """This tells whether a process is root in any respect."""
    return _ROOT in users(its)


def may_become_anyone(its: Credentials) -> bool:
    """This tells whether a process may make itself root."""
    return is_root(its) or bool(its.permitted.number & _CAP_SETUID)


def gains(before: Known, now: Credentials, exec_id: int) -> tuple[str, ...]:
    """These are the things that a process has by now, and cannot have got by itself, in words."""
    was = before.credentials
    found = list(_never(was, now))
    if exec_id != before.exec_id or now.user_namespace != was.user_namespace:
        return tuple(found)
    ids = (
        ("user", users(now) - users(was), _CAP_SETUID),
        ("group", _groups(now) - _groups(was), _CAP_SETGID),
        ("supplementary group", frozenset(now.groups) - frozenset(was.groups), _CAP_SETGID),
    )
    for kind, new, needed in ids:
        if new and not was.permitted.number & needed:
            found.append(f"{kind} {_some(new)}")
    for kind in ("permitted", "bounding"):
        more = getattr(now, kind).number & ~getattr(was, kind).number
        if more:
            found.append(f"{kind} capabilities {more:#x}")
    return tuple(found)


def _never(was: Credentials, now: Credentials) -> Iterator[str]:
    """These are the things that no exec and no right gives a process, in words."""
    if was.no_new_privs and not now.no_new_privs:
        yield "no_new_privs is off again"
    if was.seccomp in _FILTERED and now.seccomp == "disabled":
        yield "its system calls are filtered no more"
    if beyond := now.effective.number & ~now.permitted.number:
        yield f"effective capabilities {beyond:#x} that it is not permitted"


def _some(ids: frozenset[int]) -> str:
    """This is a list of ids, which a guest can make as long as it likes."""
    more = f" and {len(ids) - _MAX_TOLD} others" if len(ids) > _MAX_TOLD else ""
    return ", ".join(map(str, sorted(ids)[:_MAX_TOLD])) + more


def is_set_uid(program: Program) -> bool:
    """This tells whether whoever runs a program becomes root by that."""
    return bool(program.mode & _SET_UID) and program.owner == _ROOT


def unexplained_root(its: Credentials, program: Program, parent: Credentials) -> bool:
    """This tells whether a process is root, and nothing that is known can have made it so.

    One that its parent made, and that has called exec once at most since, is root by its parent or by
    the program that it runs; more often, and one in between may have made it root.
    """
    if not is_root(its) or its.user_namespace != parent.user_namespace:
        return False
    if may_become_anyone(parent) or program.execs is None:
        return False
    return program.execs == 0 or (program.execs == 1 and not is_set_uid(program))
