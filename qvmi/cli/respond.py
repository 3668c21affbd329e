"""The command about what playbooks have done: ``respond``."""

from pathlib import Path

import msgspec

from qvmi.bus.topic import name_from
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.moments import local_moment
from qvmi.cli.output import Output
from qvmi.cli.responding import granted, opened_journal
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.journal import Journal, Run
from qvmi.manager.response.records import HOLDER, Record
from qvmi.manager.response.run import audit, undo_run
from qvmi.policy import Policies, PolicyGate, read_policies

__all__ = ["respond"]


async def respond(
    machine: Machine,
    output: Output,
    *,
    action: str,
    run: str | None,
    policy: str | None,
    state: str | None,
) -> ExitCode:
    """This lists what was done, or undoes a run.

    Raises:
        UsageError: there is no such run, or the journal cannot be used.
    """
    if action == "list" and run is not None:
        raise UsageError(f"respond list takes nothing: {run!r}")
    with opened_journal(state, name_from(machine.address)) as journal:
        if action == "list":
            return _list(output, journal)
        noted = journal.runs.get(run or "")
        if noted is None:
            known = ", ".join(journal.runs) or "none"
            raise UsageError(f"respond undo: which run? There are {known}")
        return await _undo(machine, output, journal, noted, policy)


def _list(output: Output, journal: Journal) -> ExitCode:
    for noted in journal.runs.values():
        if output.json:
            output.document(msgspec.to_builtins(noted, str_keys=True))
            continue
        at = min((alert.last_seen for alert in noted.alerts), default=0.0)
        how = "undone" if noted.undone else "over" if noted.over else "cut off"
        steps = ", ".join(f"{number} {outcome}" for number, outcome in noted.ended.items())
        output.line(f"{noted.name}  {how}  alert of {local_moment(at)}  steps: {steps or 'none'}")
    return ExitCode.FINE


async def _undo(
    machine: Machine, output: Output, journal: Journal, noted: Run, policy: str | None
) -> ExitCode:
    if noted.undone:
        raise UsageError(f"respond undo: {noted.name} is undone already")
    if not noted.undo:
        raise UsageError(f"respond undo: {noted.name} has done nothing that can be undone")
    policies = Policies() if policy is None else read_policies(Path(policy))
    gate = PolicyGate(HOLDER, granted(policies))

    def tell(told: Record) -> None:
        audit(told)
        if output.json:
            output.document(msgspec.to_builtins(told))
        else:
            output.line(told.in_words)

    def say(_: str, __: dict[str, object]) -> None:
        """This says nothing: there is no bus."""

    well = await undo_run(noted, Actor(machine, gate, say), journal, tell)
    return ExitCode.FINE if well else ExitCode.NOT_SEEN
