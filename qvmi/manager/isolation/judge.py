"""What the facts prove: every check, in the order in which they are told."""

from dataclasses import replace
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, Report, Verdict, not_checkable, proven
from qvmi.manager.isolation.facts import Facts, Unseen
from qvmi.manager.isolation.judge_broker import (
    access,
    bridge,
    bus_files,
    listeners,
    neighbours,
    users,
)
from qvmi.manager.isolation.judge_channels import agreement, chardevs, devices, sockets
from qvmi.manager.isolation.judge_disks import disks
from qvmi.manager.isolation.judge_files import (
    control_sockets,
    folders,
    memory_files,
    shared_memory,
)
from qvmi.manager.isolation.judge_network import netdevs, taps

__all__ = ["judge"]

_NAME_QEMU: Final = "name QEMU's own pid with --pid"

_OF_THE_MACHINE = (
    *(netdevs, taps, sockets, chardevs, devices, agreement),
    *(shared_memory, memory_files, control_sockets, folders, disks),
)


def judge(facts: Facts) -> Report:
    """This says what the facts prove, refute and leave open."""
    checks = [_process(facts), *(check(facts) for check in _OF_THE_MACHINE)]
    if facts.qemu.is_qemu is not True:
        checks[1:] = map(_of_another, checks[1:])
    broker = facts.broker
    if broker is not None:
        checks += [listeners(broker), access(broker), bus_files(broker)]
        checks += [*bridge(facts, broker), *neighbours(facts, broker), users(facts, broker)]
    return Report(tuple(checks))


def _of_another(check: Check) -> Check:
    """This is a check of a process that is not known to be a QEMU: it proves nothing of the machine."""
    return replace(check, findings=tuple(map(_doubted, check.findings)))


def _doubted(finding: Finding) -> Finding:
    if finding.verdict is not Verdict.PROVEN:
        return finding
    return not_checkable(
        f"of a process that is not known to be a QEMU: {finding.evidence}", _NAME_QEMU
    )


def _process(facts: Facts) -> Check:
    """This judges whether it is QEMU that was looked at: who made the QMP socket may be another."""
    name = "what was looked at is the QEMU behind the QMP socket"
    if isinstance(facts.qemu.is_qemu, Unseen):
        return Check(name, (not_checkable(facts.qemu.is_qemu.reason, "run qvmi as root"),))
    if not facts.qemu.is_qemu:
        return Check(name, (not_checkable(f"{facts.qemu} is no QEMU", _NAME_QEMU),))
    if _answers_another(facts):
        shown = f"{facts.qemu}, as named, is not at the other end of our QMP connection"
        return Check(name, (not_checkable(shown, _NAME_QEMU),))
    if facts.listener == facts.qemu.pid:
        return Check(name, (proven(f"{facts.qemu}, by the credentials of its QMP socket"),))
    made = f"pid {facts.listener} made its QMP socket" if facts.listener else "its QMP tells no pid"
    return Check(name, (proven(f"{facts.qemu}, as named; {made}"),))


def _answers_another(facts: Facts) -> bool:
    """This tells whether our QMP connection is seen to end in another process than the one looked at."""
    if not facts.ours or isinstance(facts.qemu.descriptors, Unseen):
        return False
    held = (each.inode for each in facts.qemu.descriptors)
    return not any(facts.ours & {*facts.host.far_ends.get(inode, ())} for inode in held)
