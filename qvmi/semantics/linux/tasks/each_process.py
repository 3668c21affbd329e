"""A look at each of many processes, which may change or end meanwhile."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from qvmi.errors import MemoryFault
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.tasks.task import Tasks

__all__ = ["Look", "of_each"]

Row = TypeVar("Row")

_RETRIES: Final = 4
_MAX_GAPS: Final = 1000
"""Where so much is wrong nothing more is to be learned."""

Look = Callable[[Process, list[Gap]], Sequence[Row]]
"""Makes the rows of a process, and adds a gap for what a row lacks. It raises MemoryFault or
Implausible where there can be none, or what it relied on has changed; and Spent."""


def of_each(
    processes: Iterable[Process],
    look: Look[Row],
    *,
    structure: str,
    tasks: Tasks,
    effort: Effort,
) -> ListWalk[Row]:
    """This looks at processes one by one, again at one that changes; one that ended has no rows.

    Args:
        processes: which.
        look: looks at one.
        structure: for gaps, such as ``task_struct.cred``.
        tasks: tells which are still there.
        effort: what all this may cost, and counts the retries.
    """
    result: ListWalk[Row] = ListWalk()
    for process in processes:
        try:
            effort.spend(1)
            rows = _steady(process, look, structure, result.gaps, tasks=tasks, effort=effort)
        except Spent as spent:
            result.gaps.append(Gap(structure, process.address, str(spent)))
            break
        result.rows.update(enumerate(rows, len(result.rows)))
        if len(result.gaps) > _MAX_GAPS:
            why = "given up: so many processes are wrong"
            result.gaps.append(Gap(structure, process.address, why))
            break
    result.retries = effort.retries
    return result


def _steady(
    process: Process,
    look: Look[Row],
    structure: str,
    gaps: list[Gap],
    *,
    tasks: Tasks,
    effort: Effort,
) -> Sequence[Row]:
    why = ""
    for _ in range(_RETRIES):
        found: list[Gap] = []
        try:
            rows = look(process, found)
        except (MemoryFault, Implausible) as error:
            why = str(error)
        else:
            if not found or tasks.is_there(process):
                gaps += found
                return rows
        effort.retries += 1
        if not tasks.is_there(process):
            return ()
    gaps.append(Gap(structure, process.address, f"process {process.pid}: {why}"))
    return ()
