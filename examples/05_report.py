"""Writes what is in a guest to one HTML file: 05_report.py REPORT.html --qmp SOCKET, or --dump FILE."""

import argparse
import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qvmi
from qvmi.cli.escape import escaped
from qvmi.cli.process_tree import branches

QUESTIONS = ("facts", "processes", "sockets", "mounts", "modules", "open_files", "log")
MOST = 1000  # rows of a table, and processes that are drawn
LINE, LEFT, RIGHT = 16, 420, 900  # the height of a line, and where the bar in it may be
HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>qvmi</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>* {font: 12px monospace} th, td {text-align: left; padding-right: 1em}</style></head><body>"""


def text(value: object) -> str:
    """This is a value as HTML that shows it and does nothing else; long numbers are addresses."""
    is_address = isinstance(value, int) and value > 1 << 40
    return html.escape(escaped(f"{value:#x}" if is_address else str(value)))


def page(facts: qvmi.GuestFacts, *listings: qvmi.Listing[Any]) -> Iterator[str]:
    """This is the page, piece by piece, of the answers to the questions."""
    processes = listings[0]
    yield f"{HEAD}<h1>{text(facts.banner)}</h1><p>{processes.provenance.taken}, up {facts.uptime_s} s"
    yield f'<svg width="{RIGHT}" height="{LINE * min(len(processes) + 1, MOST)}">'
    for line, branch in enumerate(list(branches(processes.items))[:MOST], 1):
        born = min(max(branch.process.start_time_s / (facts.uptime_s or 1), 0), 1)
        x, y = LEFT + (RIGHT - LEFT) * born - 1, LINE * line
        yield f'<text x="{LINE * min(branch.depth, 20)}" y="{y}">{text(branch.process.name)}</text>'
        yield f'<path stroke="#8ac" stroke-width="8" d="M{x:.0f} {y - 4}H{RIGHT}"/>'
    yield "</svg>"
    for question, listing in zip(QUESTIONS[1:], listings, strict=True):
        yield f"<h2>{question}: {len(listing)}, {len(listing.items[MOST:])} not shown</h2><table>"
        names = listing.items[0].__struct_fields__ if listing.items else ()
        yield "<tr><th>" + "<th>".join(names)
        for row in listing.items[:MOST]:
            yield "<tr><td>" + "<td>".join(text(getattr(row, name)) for name in names)
        yield "</table>" + "".join(f"<p>not seen: {text(gap)}" for gap in listing.gaps[:MOST])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--qmp", metavar="SOCKET", help="of a machine that runs")
    source.add_argument("--dump", metavar="FILE", help="with a machine's memory")
    parser.add_argument("report", metavar="REPORT.html", type=Path, help="where it is written to")
    chosen = parser.parse_args()
    try:
        with qvmi.attach_sync(chosen.qmp) if chosen.qmp else qvmi.open_dump(chosen.dump) as machine:
            found = machine.capture(lambda guest: [getattr(guest, name)() for name in QUESTIONS])
        chosen.report.write_text("\n".join(page(*found)), encoding="utf-8")
    except (qvmi.QvmiError, OSError) as error:
        sys.exit(repr(error))
