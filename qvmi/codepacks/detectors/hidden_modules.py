"""Modules of the kernel that some of its structures show and the list of modules does not.

References: MITRE ATT&CK T1014 Rootkit, T1547.006 Kernel Modules and Extensions; the structures are in
:mod:`qvmi.semantics.linux.modules.module_sightings`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.seen_twice import seen_twice
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, ModuleSighting

__all__ = ["HiddenModules"]

_TECHNIQUE: Final = "T1014"
_LIST: Final = "modules"
_SYSFS: Final = "module_kset"
_TREE: Final = "mod_tree"
_LIVE: Final = "live"

_HALF_DONE_S: Final = 10.0
"""Longest time for which a module that is not live is believed to be on its way in or out.

It leaves the list, and its memory is freed when every CPU has passed a quiet state: milliseconds, and
seconds on an emulated machine whose host has too much to do.
"""

_PASSING_GAP_S: Final = 5.0
"""Longest time for which a gap is believed to be a moment of change."""


@dataclass(frozen=True, slots=True)
class HiddenModules:
    """This compares the list of modules with the other structures that hold them.

    Args:
        interval_s: from one look to the next.
    """

    interval_s: float = 2.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "hidden-modules"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once, and where views disagree once more: a finding is in both answers."""
        return seen_twice(_disagreements, guest)


def _disagreements(guest: GuestOS) -> list[Finding]:
    listing = guest.module_sightings()
    structures = dict.fromkeys(row.structure for row in listing)
    seen: dict[int, dict[str, ModuleSighting]] = {}
    for row in listing:
        seen.setdefault(row.struct_address, {})[row.structure] = row
    gaps = len(listing.gaps)
    return [
        _finding(views, structures, gaps)
        for views in seen.values()
        if _LIST not in views or _is_half_hidden(views, structures)
    ]


def _is_half_hidden(views: Mapping[str, ModuleSighting], structures: Mapping[str, None]) -> bool:
    """This tells whether a listed module is missing where every live one is."""
    if views[_LIST].state != _LIVE:
        return False
    return any(one in structures and one not in views for one in (_TREE, _SYSFS))


def _finding(
    views: Mapping[str, ModuleSighting], structures: Mapping[str, None], gaps: int
) -> Finding:
    row = next(iter(views.values()))
    hidden = _LIST not in views
    where = f"not in {_LIST}" if hidden else "in the list"
    missing = [one for one in dict.fromkeys((_LIST, *structures)) if one not in views]
    settle_s = 0.0 if row.state == _LIVE else _HALF_DONE_S
    return Finding(
        claim=f"module {row.name} is in {', '.join(views)} but not in {', '.join(missing)}",
        severity=Severity.CRITICAL if hidden else Severity.MEDIUM,
        technique=_TECHNIQUE,
        key=f"{where}: {row.struct_address:#x}",  # a hidden one can call itself otherwise each time
        evidence=(
            *(
                Observation(
                    view=one,
                    present=True,
                    address=row.struct_address,
                    facts={"name": views[one].name, "state": views[one].state},
                )
                for one in views
            ),
            *(Observation(view=one, present=False, facts={"gaps": gaps}) for one in missing),
        ),
        settle_s=max(settle_s, _PASSING_GAP_S if gaps else 0.0),
    )
