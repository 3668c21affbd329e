"""The command about what playbooks have done: ``respond``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from qvmi.bus.topic import name_from
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.responding import granted, journal_path, opened_journal
from qvmi.cli.printing.moments import local_moment
from qvmi.cli.printing.output import Output
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.journal import Journal, Run
from qvmi.manager.response.records import HOLDER, Record
from qvmi.manager.response.run import audit, undo_run
from qvmi.policy import Policies, PolicyGate, read_policies
from qvmi.settings import nearest

__all__ = ["respond"]

_NONE: Final = (
    "no playbook was run for this machine, as there is no {}; --state names another folder"
)


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
    vm = name_from(machine.address)
    path = journal_path(state, vm)
    if not _is_there(path):  # to ask makes no folder
        return _list(output, [], path) if action == "list" else _refuse(run, [], path)
    with opened_journal(state, vm) as journal:
        if action == "list":
            return _list(output, list(journal.runs.values()), path)
        noted = journal.runs.get(run or "")
        if noted is None:
            return _refuse(run, list(journal.runs), path)
        if noted.undone:
            return _leave(output, noted)
        return await _undo(machine, output, journal, noted, policy)


def _is_there(path: Path) -> bool:
    """This tells whether there is a journal; one that cannot be reached is there for all one knows."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _refuse(run: str | None, known: Sequence[str], path: Path) -> NoReturn:
    """This says why a run cannot be undone: there is none of that name."""
    if not known:
        raise UsageError(f"respond undo: {_NONE.format(path)}")
    if run is None:
        raise UsageError(f"respond undo: which run? There are {', '.join(known)}")
    raise UsageError(f"respond undo: there is no run {run!r}{nearest(run, known)}")


def _leave(output: Output, noted: Run) -> ExitCode:
    """This says that a run was undone already; what was done since is no part of it."""
    output.message(f"{noted.name} was undone already")
    if output.json:
        output.document({"run": noted.name, "undone": True, "items": []})
    return ExitCode.FINE


def _list(output: Output, runs: Sequence[Run], path: Path) -> ExitCode:
    if output.json:
        output.document({"items": [msgspec.to_builtins(noted, str_keys=True) for noted in runs]})
        return ExitCode.FINE
    for noted in runs:
        output.line(_in_words(noted))
    if not runs:
        output.message(_NONE.format(path))
    return ExitCode.FINE


def _in_words(noted: Run) -> str:
    at = min((alert.last_seen for alert in noted.alerts), default=0.0)
    how = "undone" if noted.undone else "over" if noted.over else "cut off"
    steps = ", ".join(f"{number} {outcome}" for number, outcome in noted.ended.items())
    undo = "" if noted.undone else ", ".join(f"{step} by {one.word}" for step, one in noted.undo)
    can = f"  can be undone: {undo}" if undo else ""
    return f"{noted.name}  {how}  alert of {local_moment(at)}  steps: {steps or 'none'}{can}"


async def _undo(
    machine: Machine, output: Output, journal: Journal, noted: Run, policy: str | None
) -> ExitCode:
    if not noted.undo:
        raise UsageError(f"respond undo: {noted.name} has done nothing that can be undone")
    policies = Policies() if policy is None else read_policies(Path(policy))
    gate = PolicyGate(HOLDER, granted(policies))

    said: list[Record] = []

    def tell(told: Record) -> None:
        audit(told)
        said.append(told)
        if not output.json:
            output.line(told.in_words)

    def say(_: str, __: dict[str, object]) -> None:
        """This says nothing: there is no bus."""

    well = await undo_run(noted, Actor(machine, gate, say), journal, tell)
    if not well and policy is None:
        output.message(
            f"what is granted says [codepacks.{HOLDER}] in --policy FILE: none was given"
        )
    if output.json:
        output.document({"run": noted.name, "undone": well, "items": said})
    return ExitCode.FINE if well else ExitCode.NOT_SEEN
