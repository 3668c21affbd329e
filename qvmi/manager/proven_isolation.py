"""Whether a watched machine is proven to have no way to the broker of its manager: the doctor is asked."""

from collections.abc import Iterator
from typing import Final

from qvmi.bus.broker import Broker
from qvmi.errors import BrokerUnavailable
from qvmi.machine.machine import Machine
from qvmi.manager.isolation.check import Report, Verdict
from qvmi.manager.isolation.examine import examine
from qvmi.manager.isolation.gather import Bus
from qvmi.manager.isolation_watch import IsolationCheck, IsolationVerdict
from qvmi.manager.manager import MakeCheck

__all__ = ["bus_of", "examined"]

_TRIES: Final = 3
"""Times that it is asked while the broker is being started again, each once that accepts."""

_MAX_NAMED: Final = 3
"""Reasons that are named; qvmi doctor tells them all."""


def examined(machine: Machine) -> MakeCheck:
    """This makes checks of one machine, each of which examines it and the broker as they are then."""

    def make(broker: Broker) -> IsolationCheck:
        async def check() -> IsolationVerdict:
            for _ in range(_TRIES):
                await broker.accepting()
                try:
                    return _verdict(await examine(machine.monitor, bus_of(broker)))
                except BrokerUnavailable:
                    continue
            raise BrokerUnavailable("the broker ends again and again while it is looked at")

        return check

    return make


def bus_of(broker: Broker) -> Bus:
    """This names a broker of ours, which knows the one that is asked without a user.

    Raises:
        BrokerUnavailable: it has just ended.
    """
    if broker.pid is None:
        raise BrokerUnavailable("the broker has just ended")
    return Bus(broker.pid, probe=broker.log.probe())


def _verdict(report: Report) -> IsolationVerdict:
    if report.verdict is Verdict.PROVEN:
        return IsolationVerdict(proven=True)
    return IsolationVerdict(proven=False, why="; ".join(list(_reasons(report))[:_MAX_NAMED]))


def _reasons(report: Report) -> Iterator[str]:
    """These are the ways that were found, or else what could not be looked at."""
    yield from report.paths
    if not report.paths:
        for check in report.checks:
            for finding in check.findings if check.decides else ():
                if finding.verdict is Verdict.NOT_CHECKABLE:
                    yield f"{check.name}: {finding.evidence}"
