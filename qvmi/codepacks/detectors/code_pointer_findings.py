"""What codepacks say of a place from which the kernel calls code that should not be called there."""

from typing import Final

from qvmi.codepacks.codepack import MAX_KEY_LENGTH, Finding, Observation, Severity, hexadecimal
from qvmi.semantics.guest_os import CodePointer, Listing
from qvmi.view import Taken

__all__ = ["pointer_findings"]

_TECHNIQUE: Final = "T1014"

_PASSING_GAP_S: Final = 5.0
"""Longest time for which a listing with gaps is believed to be one of a moment of change.

Whoever's code is called may be behind the gap.
"""


def pointer_findings(
    listing: Listing[CodePointer], *, severity: Severity, settle_s: float = 0.0
) -> list[Finding]:
    """These are findings about the rows that have a problem.

    Args:
        listing: what the kernel would call.
        severity: how bad each is.
        settle_s: how long each must have been seen.
    """
    gaps = len(listing.gaps)
    if listing.provenance.taken is Taken.LIVE and gaps:
        settle_s = max(settle_s, _PASSING_GAP_S)
    return [
        _finding(row, severity=severity, settle_s=settle_s, gaps=gaps)
        for row in listing
        if row.problem
    ]


def _finding(row: CodePointer, *, severity: Severity, settle_s: float, gaps: int) -> Finding:
    where = f"{row.table}[{row.entry}]" if row.entry else row.table
    what = row.symbol or (f"{row.target:#x} of {row.owner}" if row.owner else f"{row.target:#x}")
    return Finding(
        claim=f"{where} leads to {what}: {row.problem}",
        severity=severity,
        technique=_TECHNIQUE,
        # Not where it leads: nobody is safe who lets it lead elsewhere at each look.
        key=f"{row.place:#x} in {where}"[:MAX_KEY_LENGTH],
        evidence=(
            Observation(
                view=row.table,
                present=True,
                address=row.place,
                facts={"entry": row.entry, "target": f"{row.target:#x}", "problem": row.problem},
                data=hexadecimal(row.found),
            ),
            Observation(
                view="the kernel's known code",
                present=bool(row.owner),
                address=row.target,
                facts={"owner": row.owner, "symbol": row.symbol, "gaps": gaps},
            ),
            *_should_be(row),
        ),
        settle_s=settle_s,
    )


def _should_be(row: CodePointer) -> tuple[Observation, ...]:
    """This is what should lie there, where that is known, for whoever puts it back."""
    if not row.expected:
        return ()
    right = hexadecimal(row.expected)
    view = "the kernel's symbols"
    return (Observation(view=view, present=False, address=row.place, data=right),)
