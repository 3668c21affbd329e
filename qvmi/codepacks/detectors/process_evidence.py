"""How codepacks about processes name one, and what they show of it."""

from collections.abc import Iterable
from typing import Final

from qvmi.addr import Va
from qvmi.codepacks.codepack import Observation
from qvmi.semantics.guest_os import Listing, Process, TaskSighting, Thread

__all__ = ["MAX_NAME", "MAX_TEXT", "Fact", "by_address", "identity", "seen", "short", "told"]

MAX_NAME: Final = 64
"""Letters of a process's name in a claim; it has 15 bytes, which may be written as four letters each."""
MAX_TEXT: Final = 256
"""Letters of a path or another of the guest's words: evidence has to fit into one message."""

Fact = str | int | float | bool | None


def identity(task: Process | Thread | TaskSighting) -> str:
    """This names one task for as long as the guest runs; its address is used again after it."""
    return f"{task.address:#x}@{task.start_time_s!r}"


def told(process: Process) -> str:
    """This is a process in words."""
    return f"process {process.pid} ({process.name[:MAX_NAME]})"


def short(text: str) -> str:
    """This is a word of the guest's, cut where it is longer than evidence may be."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def by_address(processes: Listing[Process]) -> dict[Va, Process]:
    """These are processes by the addresses of their tasks."""
    return {process.address: process for process in processes}


def seen(view: str, row: object, names: Iterable[str], **more: Fact) -> Observation:
    """This observes a row of the guest's: its address, and some of its fields as facts."""
    facts: dict[str, Fact] = {}
    for name in names:
        value = getattr(row, name)
        facts[name] = short(value) if isinstance(value, str) else value
    facts.update(more)
    return Observation(view=view, present=True, address=getattr(row, "address", None), facts=facts)
