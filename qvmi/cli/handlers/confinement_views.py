"""The commands that tell what processes may do and where they live: their rights, namespaces and cgroups."""

import re
from collections.abc import Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import Inhabited, looked, show
from qvmi.cli.handlers.views import perhaps_of
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column
from qvmi.semantics.guest_os import CapabilitySet, Cgroup, Credentials, Namespaces
from qvmi.semantics.linux.processes.capability import capability_set

__all__ = ["cgroups", "creds", "namespaces"]

_GROUPS_SHOWN: Final = 2
"""Supplementary groups, and pids, that a table has room for; --json tells all."""
_CAPABILITIES_SHOWN: Final = 2
"""Capabilities of a set, or those that it lacks, that a table has room for; --json tells all."""
_ALL_KNOWN: Final = 41
"""Capabilities that kernels have since 5.9: who has so many has all."""
_ALL: Final = "all"
_SHORT: Final = 12
"""Digits of a container's id by which its runtime knows it, too."""
_ID: Final = re.compile(r"[0-9a-f]{32,}")
_LONGEST_NAME: Final = 24
"""Of a container's name in a table; the path beside it has all of it."""


def _ids(*numbers: int) -> str:
    """This writes ids, one alone where all are the same."""
    return "/".join(map(str, dict.fromkeys(numbers) if len(set(numbers)) == 1 else numbers))


def _listed(numbers: Sequence[int]) -> str:
    shown = list(map(str, numbers[:_GROUPS_SHOWN])) or ["-"]
    if len(numbers) > _GROUPS_SHOWN:
        shown.append(f"+{len(numbers) - _GROUPS_SHOWN}")
    return ",".join(shown)


def _set(held: CapabilitySet) -> str:
    """This is a set in a few words: the names in it, or those it lacks, or how many it has."""
    missing = capability_set((1 << _ALL_KNOWN) - 1 & ~held.number)
    if not missing.number:
        return _ALL
    if len(held.names) <= _CAPABILITIES_SHOWN:
        return _names(held) or "-"
    if len(missing.names) <= _CAPABILITIES_SHOWN:
        return f"all but {_names(missing)}"
    return f"{len(held.names)} of {_ALL_KNOWN}"


def _names(some: CapabilitySet) -> str:
    return ",".join(name.removeprefix("cap_") for name in some.names)


def _capabilities(its: Credentials) -> str:
    """This is what a process may do, and behind it the other sets where they say something else."""
    unlike = (
        ("permitted", its.permitted, its.permitted == its.effective),
        ("inheritable", its.inheritable, not its.inheritable.number),
        ("ambient", its.ambient, not its.ambient.number),
        ("bounding", its.bounding, _set(its.bounding) == _ALL),
    )
    others = [
        f"{name} {'too' if held == its.effective else _set(held)}"
        for name, held, usual in unlike
        if not usual
    ]
    return "; ".join([_set(its.effective), *others])


def _limits(its: Credentials) -> str:
    """This is what holds a process back, and what its exec treats otherwise than usual."""
    words = ["no_new_privs"] if its.no_new_privs else []
    if its.seccomp not in {"", "disabled"}:
        words.append(f"seccomp {its.seccomp}")
    if its.securebits:
        words.append(f"securebits {its.securebits:#x}")
    return ", ".join(words) or "-"


def _container(its: Cgroup) -> str:
    if _ID.fullmatch(its.container):
        return its.container[:_SHORT]
    if len(its.container) > _LONGEST_NAME:
        return its.container[:_LONGEST_NAME] + "..."
    return its.container or "-"


def _number(namespace: int | None) -> str:
    return "-" if namespace is None else str(namespace)


# What may be long comes last, where it makes no other row long.
_CREDENTIALS: Final[Sequence[Column[Credentials]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
    Column("NAME", lambda its: its.name),
    Column("UID", lambda its: _ids(its.uid, its.euid, its.suid, its.fsuid), right=True),
    Column("GID", lambda its: _ids(its.gid, its.egid, its.sgid, its.fsgid), right=True),
    Column("GROUPS", lambda its: _listed(its.groups)),
    Column("SHARED", lambda its: _listed(its.shared_with)),
    Column("CAPABILITIES", _capabilities),
    Column("LIMITS", _limits),
    Column("LABEL", lambda its: its.label or "-"),
)
_NAMESPACES: Final[Sequence[Column[Namespaces]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
    Column("NAME", lambda its: its.name),
    Column("INNER", lambda its: str(its.inner_pid), right=True),
    Column("MNT", lambda its: _number(its.mnt), right=True),
    Column("PIDNS", lambda its: str(its.pid_ns), right=True),
    Column("NET", lambda its: _number(its.net), right=True),
    Column("UTS", lambda its: _number(its.uts), right=True),
    Column("IPC", lambda its: _number(its.ipc), right=True),
    Column("USER", lambda its: str(its.user), right=True),
    Column("CGROUP", lambda its: _number(its.cgroup), right=True),
    Column("TIME", lambda its: _number(its.time), right=True),
    Column("HOSTNAME", lambda its: its.hostname or "-"),
)
_CGROUP: Final[Sequence[Column[Cgroup]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
    Column("NAME", lambda its: its.name),
    Column("HIERARCHY", lambda its: str(its.hierarchy), right=True),
    Column("CONTROLLERS", lambda its: its.controllers or "-"),
    Column("RUNTIME", lambda its: its.runtime or "-"),
    Column("CONTAINER", _container),
    Column("PATH", lambda its: its.path + " (deleted)" * its.deleted),
)


async def creds(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists who a process is and what it may do, or who all are."""
    walk = perhaps_of(pid, lambda guest, process: guest.credentials(process))
    return show(output, await looked(machine, output, walk, exact=exact), _CREDENTIALS)


async def namespaces(
    machine: Inhabited, output: Output, *, pid: int | None, exact: bool
) -> ExitCode:
    """This lists the namespaces of a process, or of all."""
    walk = perhaps_of(pid, lambda guest, process: guest.namespaces(process))
    return show(output, await looked(machine, output, walk, exact=exact), _NAMESPACES)


async def cgroups(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists the cgroups of a process, or of all, and the containers that they tell."""
    walk = perhaps_of(pid, lambda guest, process: guest.cgroups(process))
    return show(output, await looked(machine, output, walk, exact=exact), _CGROUP)
