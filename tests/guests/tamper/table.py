"""The table: every way to tamper with a guest that a codepack must tell."""

from typing import Final

from tests.guests.tamper.kernel_rows import KERNEL_ROWS
from tests.guests.tamper.program_rows import PROGRAM_ROWS
from tests.guests.tamper.right_rows import RIGHT_ROWS
from tests.guests.tamper.scenario import Scenario
from tests.guests.tamper.system_rows import SYSTEM_ROWS
from tests.guests.tamper.task_rows import TASK_ROWS
from tests.guests.tamper.text_rows import TEXT_ROWS

__all__ = ["ELSEWHERE", "SCENARIOS", "documented"]

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *TASK_ROWS,
    *KERNEL_ROWS,
    *TEXT_ROWS,
    *PROGRAM_ROWS,
    *RIGHT_ROWS,
    *SYSTEM_ROWS,
)

ELSEWHERE: Final = frozenset({"known-malware", "disk-differences", "flows-without-owner"})
"""What needs rules, a disk or a network is planted by the tests of those codepacks."""


def documented() -> str:
    """This is the table as docs/codepacks.md has it."""
    head = ("| what is done | how | told by | technique | arm64 |", "|---|---|---|---|---|")
    rows = (
        f"| {one.name} | {one.way} | `{one.codepack}` | {one.technique} | {'yes' * one.on_arm64} |"
        for one in SCENARIOS
    )
    return "\n".join((*head, *rows)) + "\n"
