"""Every Linux plugin of Volatility on one guest: what came of each, as the table in the documents tells it.

``python -m tests.guests.volatility_survey`` writes the tables of docs/volatility.md anew.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import qvmi
from qvmi.errors import PluginFailed, UsageError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
from qvmi.semantics.volatility_bridge.table import VolatilityTable
from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.volatility_truth import CHECKS, Scene
from tests.repository.tree import ROOT

__all__ = [
    "AARCH64",
    "DOCUMENT",
    "X86_64",
    "Failure",
    "columns_of_document",
    "linux_plugins",
    "remark_of",
    "survey",
]

DOCUMENT: Final = ROOT / "docs" / "volatility.md"

CHECKED: Final = "checked"
WORKS: Final = "works"
NOTHING: Final = "nothing to find"
FAILS: Final = "fails"
WRONG: Final = "wrong"
SOMETIMES: Final = "may fail"

Table = Mapping[str, GuestConfig]
"""The guests of a table's columns."""

X86_64: Final[Table] = {kernel: GuestConfig(kernel=kernel) for kernel in KERNELS}
AARCH64: Final[Table] = {
    "6.12-arm64": aarch64(),
    "7.x-arm64": aarch64("7.x-arm64", NARROW),
}
"""Five levels of page tables with 52 bits, and four with 48."""

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
    "linux.vmayarascan": (Failure("no plugin 'linux.vmayarascan'", "needs yara-python"),),
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
    "linux.malware.modxview.Modxview": (
        Failure(
            WRONG,
            "takes each module for hidden from sysfs: counts on more references than there are",
            ("7.x", "7.x-arm64"),
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
    "linux.malware.check_modules.Check_modules": "7.x: sees no module in sysfs, as modxview",
    "linux.malware.check_syscall.Check_syscall": "6.12, 7.x: by its source the kernel calls past this table",
}
"""What else there is to know of a plugin's answers on x86-64."""

NOTES_OF_AARCH64: Final = {
    "linux.malware.check_modules.Check_modules": "7.x-arm64: sees no module in sysfs, as modxview",
}
"""The same of aarch64."""


def linux_plugins() -> tuple[str, ...]:
    """These are all Linux plugins that there are, those that want for a package among them."""
    failed = VolatilityBridge.import_folders(())
    missing = (name.removeprefix("volatility3.plugins.") for name in failed)
    known = [*VolatilityBridge.plugins(), *missing]
    return tuple(sorted(name for name in known if name.startswith("linux.")))


def old_name_of(name: str) -> str | None:
    """This is the plugin that another one is only an old name of, None for one that is none."""
    text = VolatilityBridge.plugins().get(name, "")
    if "(deprecated)" not in text:
        return None
    stem = name.split(".")[1]
    (found,) = (
        one for one in VolatilityBridge.plugins() if one.startswith(f"linux.malware.{stem}.")
    )
    return found


def survey(guest: Guest, profiles: Path) -> dict[str, str]:
    """This runs each plugin on a guest that stands still, and says what came of it.

    Raises:
        AssertionError: a plugin's rows are not what the guest says of itself, or it failed
            for a reason that is not known to be Volatility's.
    """
    before, said = guest.settled_truth(), Scene.ask(guest)
    answers: dict[str, VolatilityTable | str] = {}
    with warnings.catch_warnings(), qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        warnings.simplefilter("ignore", FutureWarning)  # old names tell that they are old
        bridge = VolatilityBridge()
        guest.monitor.execute("stop")
        for name in linux_plugins():
            if old_name_of(name) is None:
                answers[name] = _answer(bridge, machine.guest, name)
        guest.monitor.execute("cont")
    scene = Scene(before, guest.truth(), said)
    return {name: _outcome(guest, name, answer, scene) for name, answer in answers.items()}


def _answer(bridge: VolatilityBridge, guest: LinuxGuest, name: str) -> VolatilityTable | str:
    """This is a plugin's answer, or what it failed with."""
    try:
        table = bridge.answer(guest, name, _options(guest).get(name, {}))
    except (PluginFailed, UsageError) as error:
        return str(error)
    return table if not table.gaps else "; ".join(gap.reason for gap in table.gaps)


def _options(guest: LinuxGuest) -> Mapping[str, dict[str, object]]:
    """These are the options that plugins cannot do without, or fail sooner with."""
    return {
        "linux.kallsyms.Kallsyms": {"modules": True},
        "linux.module_extract.ModuleExtract": {"base": guest.modules().items[0].struct_address},
        "linux.pagecache.InodePages": {"find": "/init"},
        "linux.vmaregexscan.VmaRegExScan": {"pattern": r"\x7fELF", "pid": [1]},
    }


def _outcome(guest: Guest, name: str, answer: VolatilityTable | str, scene: Scene) -> str:
    kernel = str(guest.config.kernel)
    for known in FAILURES.get(name, ()):
        if kernel in known.kernels:
            return _known_outcome(known, name, answer, scene)
    assert not isinstance(answer, str), f"{name} on {kernel}: {answer}"
    if name in CHECKS:
        CHECKS[name](_rows(answer), scene)
        return CHECKED
    return WORKS if len(answer) else NOTHING


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


def columns_of_document(table: Table = X86_64) -> dict[str, list[str]]:
    """These are the cells of a table by plugin."""
    text = DOCUMENT.read_text().partition(_header(table))[2].partition("\n\n")[0]
    rows = _ROW.findall(text)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def _header(table: Table) -> str:
    return f"| plugin | {' | '.join(table)} | |"


def _lines(outcomes: Mapping[str, Mapping[str, str]], table: Table) -> Iterator[str]:
    """These are the lines of a table."""
    yield _header(table)
    yield "|---" * (len(table) + 2) + "|"
    for name in linux_plugins():
        old = old_name_of(name)
        cells = [outcomes[kernel].get(name, "") for kernel in table]
        if old is not None:
            cells = [f"as {old.split('.')[-1]}"] * len(table)
        yield f"| `{name}` | {' | '.join(cells)} | {remark_of(name, table)} |"


def remark_of(name: str, table: Table = X86_64) -> str:
    """This is what a table says of a plugin besides its outcomes."""
    old = old_name_of(name)
    if old is not None:
        return f"an old name of `{old}`"
    reasons = "; ".join(filter(None, (_reason(one, table) for one in FAILURES.get(name, ()))))
    notes = NOTES_OF_AARCH64 if table is AARCH64 else NOTES
    return reasons or notes.get(name, "")


def _reason(known: Failure, table: Table) -> str:
    """This is why a plugin fails on the kernels of a table; empty where it fails on others."""
    here = [kernel for kernel in table if kernel in known.kernels]
    if len(here) in {0, len(table)}:
        return known.why if here else ""
    return f"{', '.join(here)}: {known.why}"


def write_document() -> None:
    """This runs the survey on all kernels and puts its tables into the document."""
    lab = Lab()
    for table in (X86_64, AARCH64):
        outcomes = {}
        for kernel, config in table.items():
            with ExitStack() as stack:
                guest = stack.enter_context(lab.restore(config))
                outcomes[kernel] = survey(guest, guest.folder / "profiles")
        head, _, rest = DOCUMENT.read_text().partition(_header(table))
        tail = rest.partition("\n\n")[2]
        DOCUMENT.write_text(f"{head}{chr(10).join(_lines(outcomes, table))}\n\n{tail}")


if __name__ == "__main__":
    write_document()
