"""Writes what is in a guest to one HTML file: 05_report.py REPORT.html --qmp SOCKET, or --dump FILE."""

import argparse
import runpy
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import qvmi
from qvmi.cli.printing.moments import duration
from qvmi.cli.printing.report_page import head, table, text, timeline

QUESTIONS = ("processes", "command_lines", "sockets", "mounts", "modules", "open_files", "log")
Triage = tuple[list[tuple[str, int, str]], list[qvmi.Gap]]
TRIAGE = runpy.run_path(str(Path(__file__).with_name("04_triage.py")))["triage"]


def asked(guest: qvmi.GuestOS) -> tuple[qvmi.GuestFacts, Triage, list[qvmi.Listing[Any]]]:
    """This asks the guest all of it, at one moment."""
    return guest.facts(), TRIAGE(guest), [getattr(guest, name)() for name in QUESTIONS]


def page(
    source: str, facts: qvmi.GuestFacts, triage: Triage, listings: list[qvmi.Listing[Any]]
) -> Iterator[str]:
    """This is the page, piece by piece, of what the guest has answered."""
    findings, unseen = triage
    taken, uptime_s = listings[0].provenance, round(facts.uptime_s or 0)
    at = datetime.fromtimestamp(taken.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield head(f"{facts.os} {facts.release} in {source}")
    yield f"<p>{text(facts.banner)}</p><p>{taken.taken} at {at}, up {duration(uptime_s)}</p>"
    links = (f'<a href="#{name}">{name.replace("_", " ")}</a>' for name in ("timeline", *QUESTIONS))
    yield f'<nav><a href="#findings">findings</a> {" ".join(links)}</nav>'
    yield table("findings", ("what", "pid", "more"), findings, unseen)
    yield from timeline(listings[0].items, uptime_s or 1)
    for name, listing in zip(QUESTIONS, listings, strict=True):
        fields = listing[0].__struct_fields__ if listing.items else ()
        rows = [[getattr(row, field) for field in fields] for row in listing]
        yield table(name, fields, rows, listing.gaps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--qmp", metavar="SOCKET", help="of a machine that runs")
    source.add_argument("--dump", metavar="FILE", help="with a machine's memory")
    parser.add_argument("report", metavar="REPORT.html", type=Path, help="where it is written to")
    chosen = parser.parse_args()
    try:
        with qvmi.attach_sync(chosen.qmp) if chosen.qmp else qvmi.open_dump(chosen.dump) as machine:
            found = machine.capture(asked)
        pieces = page(chosen.qmp or chosen.dump, *found)
        chosen.report.write_text("\n".join(pieces), encoding="utf-8")
    except (qvmi.QvmiError, OSError) as error:
        sys.exit(repr(error))
    gaps = sum((len(listing.gaps) for listing in found[2]), len(found[1][1]))
    print(f"{chosen.report}: written; gaps: {gaps}")
    sys.exit(4 if gaps else 0)
