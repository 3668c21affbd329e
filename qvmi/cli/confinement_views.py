"""The commands that tell what processes may do and where they live: their rights, namespaces and cgroups."""

from collections.abc import Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.listings import Inhabited, looked, show
from qvmi.cli.output import Output
from qvmi.cli.table import Column
from qvmi.cli.views import perhaps_of
from qvmi.semantics.guest_os import CapabilitySet, Cgroup, Credentials, Namespaces

__all__ = ["cgroups", "creds", "namespaces"]

_GROUPS_SHOWN: Final = 4
"""Supplementary groups that a table has room for; --json tells all."""
_ALL_KNOWN: Final = 41
"""Capabilities that kernels have since 5.9: who has so many has all."""


def _ids(*numbers: int) -> str:
    """This writes ids, one alone where all are the same."""
    return "/".join(map(str, dict.fromkeys(numbers) if len(set(numbers)) == 1 else numbers))


def _listed(numbers: Sequence[int]) -> str:
    shown = ",".join(map(str, numbers[:_GROUPS_SHOWN])) or "-"
    return shown + (f",... ({len(numbers)})" if len(numbers) > _GROUPS_SHOWN else "")


def _capabilities(held: CapabilitySet) -> str:
    if len(held.names) >= _ALL_KNOWN:
        return "all"
    return ",".join(name.removeprefix("cap_") for name in held.names) or "-"


def _number(namespace: int | None) -> str:
    return "-" if namespace is None else str(namespace)


_CREDENTIALS: Final[Sequence[Column[Credentials]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
    Column("UID", lambda its: _ids(its.uid, its.euid, its.suid, its.fsuid), right=True),
    Column("GID", lambda its: _ids(its.gid, its.egid, its.sgid, its.fsgid), right=True),
    Column("GROUPS", lambda its: _listed(its.groups)),
    Column("USERNS", lambda its: str(its.user_namespace), right=True),
    Column("NNP", lambda its: "yes" if its.no_new_privs else "no"),
    Column("SECCOMP", lambda its: its.seccomp or "-"),
    Column("BITS", lambda its: f"{its.securebits:#x}", right=True),
    Column("EFFECTIVE", lambda its: _capabilities(its.effective)),
    Column("PERMITTED", lambda its: _capabilities(its.permitted)),
    Column("BOUNDING", lambda its: f"{its.bounding.number:x}", right=True),
    Column("AMBIENT", lambda its: _capabilities(its.ambient)),
    Column("SHARED", lambda its: _listed(its.shared_with)),
    # The guest's words come last, where they can move nothing else.
    Column("LABEL", lambda its: its.label or "-"),
    Column("NAME", lambda its: its.name),
)
_NAMESPACES: Final[Sequence[Column[Namespaces]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
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
    Column("NAME", lambda its: its.name),
)
_CGROUP: Final[Sequence[Column[Cgroup]]] = (
    Column("PID", lambda its: str(its.pid), right=True),
    Column("HIERARCHY", lambda its: str(its.hierarchy), right=True),
    Column("CONTROLLERS", lambda its: its.controllers or "-"),
    Column("RUNTIME", lambda its: its.runtime or "-"),
    Column("POD", lambda its: its.pod or "-"),
    Column("CONTAINER", lambda its: its.container or "-"),
    Column("PATH", lambda its: its.path + " (deleted)" * its.deleted),
    Column("NAME", lambda its: its.name),
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
