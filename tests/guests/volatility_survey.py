"""What came of every Linux plugin of Volatility on a guest, as the table in the documents tells it.

``python -m tests.guests.volatility_survey`` writes the tables of docs/volatility.md anew.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from qvmi.semantics.volatility_bridge.table import VolatilityTable
from tests.guests.volatility_observation import (
    AARCH64,
    X86_64,
    Guests,
    Observation,
    linux_plugins,
    observe_all,
    old_name_of,
)
from tests.guests.volatility_truth import CHECKS, Scene
from tests.repository.tree import ROOT

__all__ = [
    "DOCUMENT",
    "SOMETIMES",
    "Failure",
    "check_planted",
    "columns_of_document",
    "outcomes_of",
    "remark_of",
]

DOCUMENT: Final = ROOT / "docs" / "volatility.md"

CHECKED: Final = "checked"
WORKS: Final = "works"
NOTHING: Final = "nothing to find"
FAILS: Final = "fails"
WRONG: Final = "wrong"
SOMETIMES: Final = "may fail"
PLANTED: Final = ", planted"
"""Behind `WORKS` or `NOTHING`."""

_ROW: Final = re.compile(r"^\| `(linux\.[\w.]+)` \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """This is a failure that is Volatility's own, on the same bytes with any layer below it.

    Attributes:
        text: a part of what it says; `WRONG` where its rows are not the truth.
        why: for the table.
        kernels: where it is seen.
        sometimes: whether it depends on what lies in memory.
    """

    text: str
    why: str
    kernels: tuple[str, ...] = (*X86_64, *AARCH64)
    sometimes: bool = False


FAILURES: Final[Mapping[str, tuple[Failure, ...]]] = {
    "linux.graphics.fbdev.Fbdev": (Failure("PIL (pillow) module is required", "needs pillow"),),
    "linux.kallsyms.Kallsyms": (
        Failure(
            "pointer_to_string takes a Pointer",
            "`--modules`, and so the default, trips over exports with relative names;"
            " `--core` works but on 7.x, whose kallsyms is place-relative",
            tuple(X86_64),
        ),
        Failure(
            "pointer_to_string takes a Pointer",
            "as on x86-64; the addresses of `--core` are wrong too, as those of pscallstack",
            tuple(AARCH64),
        ),
    ),
    "linux.pscallstack.PsCallStack": (
        Failure(
            "unsupported operand type(s) for -: 'NoneType' and 'int'",
            "has no place-relative kallsyms",
            ("7.x", "7.x-arm64"),
        ),
        Failure(
            WRONG,
            "takes addresses in kallsyms for absolute that are not: counts on x86's form of it",
            ("6.12-arm64",),
        ),
    ),
    "linux.malware.check_idt.Check_idt": (
        Failure(
            "Unable to determine the data structure type for IDT entries",
            "looks for x86's interrupt descriptor table",
            tuple(AARCH64),
        ),
    ),
    "linux.sockscan.Sockscan": (
        Failure(
            "'NoneType' object has no attribute 'socket'",
            "trips over what is left of a closed socket, if there is any",
            sometimes=True,
        ),
    ),
}
"""Those that are known. Another one, or one that is none any more, fails the test."""


NOTES: Final = {
    "linux.library_list.LibraryList": "leaves out some libraries",
    "linux.malware.check_modules.Check_modules": "its Offset is that of a member of the struct",
    "linux.malware.check_syscall.Check_syscall": (
        "Table Address is as without KASLR; 6.12, 7.x: by its source the kernel calls past this table"
    ),
}
"""What else there is to know of a plugin's answers on x86-64."""

NOTES_OF_AARCH64: Final[Mapping[str, str]] = {
    "linux.malware.check_modules.Check_modules": NOTES["linux.malware.check_modules.Check_modules"],
}
"""The same of aarch64."""


def outcomes_of(seen: Observation) -> dict[str, str]:
    """This says what came of each plugin.

    Raises:
        AssertionError: a plugin's rows are not what the guest says of itself, or it failed
            for a reason that is not known to be Volatility's.
    """
    return {name: _outcome(seen, name) for name in seen.answers}


def _outcome(seen: Observation, name: str) -> str:
    answer = seen.answers[name]
    for known in FAILURES.get(name, ()):
        if seen.kernel in known.kernels:
            return _known_outcome(known, name, answer, seen.scene)
    assert not isinstance(answer, str), f"{name} on {seen.kernel}: {answer}"
    if name in CHECKS:
        CHECKS[name](_rows(answer), seen.scene)
        return CHECKED
    return (WORKS if len(answer) else NOTHING) + (PLANTED if name in seen.planted else "")


def check_planted(seen: Observation) -> None:
    """This compares what plugins say of what was planted with what they must.

    Raises:
        AssertionError: one of them failed, or told nothing of it, or something else.
    """
    for name, planted in seen.planted.items():
        before, after = seen.answers[name], seen.found[name]
        assert not isinstance(before, str), f"{name} on {seen.kernel}: {before}"
        assert not isinstance(after, str), f"{name} on {seen.kernel}: {after}"
        planted.check(_rows(before), _rows(after))


def _known_outcome(known: Failure, name: str, answer: VolatilityTable | str, scene: Scene) -> str:
    """This is what comes of a plugin that is known to fail; if it does not, that is an error."""
    if known.text == WRONG:
        assert not isinstance(answer, str)
        with pytest.raises(AssertionError):
            CHECKS[name](_rows(answer), scene)
        return WRONG
    if isinstance(answer, str):
        assert known.text in answer
    else:
        assert known.sometimes, f"{name} does not fail any more"
    return SOMETIMES if known.sometimes else FAILS


def _rows(table: VolatilityTable) -> list[dict[str, Any]]:
    return [{"depth": row.depth, **row.values} for row in table]


def columns_of_document(table: Guests = X86_64) -> dict[str, list[str]]:
    """These are the cells of a table by plugin."""
    text = DOCUMENT.read_text().partition(_header(table))[2].partition("\n\n")[0]
    rows = _ROW.findall(text)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def _header(table: Guests) -> str:
    return f"| plugin | {' | '.join(table)} | |"


def _lines(outcomes: Mapping[str, Mapping[str, str]], table: Guests) -> Iterator[str]:
    """These are the lines of a table."""
    yield _header(table)
    yield "|---" * (len(table) + 2) + "|"
    for name in linux_plugins():
        old = old_name_of(name)
        cells = [outcomes[kernel].get(name, "") for kernel in table]
        if old is not None:
            cells = [f"as {old.split('.')[-1]}"] * len(table)
        yield f"| `{name}` | {' | '.join(cells)} | {remark_of(name, table)} |"


def remark_of(name: str, table: Guests = X86_64) -> str:
    """This is what a table says of a plugin besides its outcomes."""
    old = old_name_of(name)
    if old is not None:
        return f"an old name of `{old}`"
    reasons = "; ".join(filter(None, (_reason(one, table) for one in FAILURES.get(name, ()))))
    notes = NOTES_OF_AARCH64 if table is AARCH64 else NOTES
    return reasons or notes.get(name, "")


def _reason(known: Failure, table: Guests) -> str:
    """This is why a plugin fails on the kernels of a table; empty where it fails on others."""
    here = [kernel for kernel in table if kernel in known.kernels]
    if len(here) in {0, len(table)}:
        return known.why if here else ""
    return f"{', '.join(here)}: {known.why}"


def write_document() -> None:
    """This observes guests of all kernels and puts what came of it into the document."""
    with observe_all((*X86_64, *AARCH64)) as observed:
        seen = [observation.result() for observation in observed.values()]
    for one in seen:
        check_planted(one)
    outcomes = {one.kernel: outcomes_of(one) for one in seen}
    for table in (X86_64, AARCH64):
        head, _, rest = DOCUMENT.read_text().partition(_header(table))
        tail = rest.partition("\n\n")[2]
        DOCUMENT.write_text(f"{head}{chr(10).join(_lines(outcomes, table))}\n\n{tail}")


if __name__ == "__main__":
    write_document()
