"""The page that 05_report.py writes: its tables and its time line, with nothing of the guest's that acts."""

import html
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import qvmi
from qvmi.cli.escape import escaped
from qvmi.cli.process_tree import branches

HEAD = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
MOST = 1000  # rows of a table, and processes that are drawn
LINE, LEFT, RIGHT = 18, 420, 960  # the height of a line, and where the bar in it may be


def text(value: object) -> str:
    """This is a value as HTML that shows it and does nothing else; long numbers are addresses."""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    is_address = isinstance(value, int) and value > 1 << 40
    return html.escape(escaped(f"{value:#x}" if is_address else str(value)))


def table(name: str, titles: Sequence[str], rows: Sequence[Any], gaps: Iterable[qvmi.Gap]) -> str:
    """This is a section with a table, and below it what could not be looked at."""
    more = f", {len(rows) - MOST} of them not shown" if len(rows) > MOST else ""
    head = "<tr><th>" + "<th>".join(title.replace("_", " ") for title in titles)
    body = ("<tr><td>" + "<td>".join(map(text, row)) for row in rows[:MOST])
    missing = (f'<p class="gap">not seen: {text(f"{gap.structure}: {gap.reason}")}' for gap in gaps)
    heading = f'<h2 id="{name}">{name.replace("_", " ")} ({len(rows)}{more})</h2>'
    return "\n".join([heading, "<table>", *([head] if rows else []), *body, "</table>", *missing])


def timeline(processes: Sequence[qvmi.Process], uptime_s: float) -> Iterator[str]:
    """This draws when each process was born, below its parent."""
    shown = list(branches(processes))[:MOST]
    yield '<h2 id="timeline">timeline</h2><p>A bar from the start of each process to the capture;'
    yield "blue: user processes, grey: kernel threads. Above: time since boot."
    yield f'<svg viewBox="0 0 {RIGHT + 40} {LINE * (len(shown) + 2)}">'
    for quarter in range(5):
        x, label = LEFT + (RIGHT - LEFT) * quarter // 4, timedelta(seconds=uptime_s * quarter // 4)
        yield f'<text x="{x}" y="{LINE - 6}" text-anchor="middle">{label}</text>'
        yield f'<path d="M{x} {LINE}V{LINE * (len(shown) + 2)}"/>'
    for line, branch in enumerate(shown, 2):
        x, y = LEFT, LINE * line
        x += round((RIGHT - LEFT) * min(max(branch.process.start_time_s / uptime_s, 0), 1)) - 1
        kind = "kernel" if branch.process.kernel_thread else "user"
        yield f'<text x="{LINE * min(branch.depth, 20)}" y="{y}">{text(branch.process.name)}</text>'
        yield f'<path class="{kind}" d="M{x} {y - 4}H{RIGHT}"/>'
    yield "</svg>"
