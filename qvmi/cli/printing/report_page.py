"""Pages of HTML with tables and a time line, in which nothing of the guest's acts.

References: HTML Living Standard, 13.1.2 (elements); W3C Content Security Policy Level 3.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from qvmi.cli.printing.escape import escaped
from qvmi.cli.printing.moments import duration
from qvmi.cli.printing.process_tree import branches
from qvmi.semantics.guest_os import Gap, Process

__all__ = ["head", "table", "text", "timeline"]

MOST: Final = 1000
"""Rows of a table, and processes that are drawn: what is more, nobody reads in a page."""

_ADDRESS: Final = 1 << 40
"""Integers from here on are addresses."""
_LINE, _LEFT, _RIGHT = 18, 420, 960
"""The height of a line, and where the bar in it may be."""
_MOST_DEPTH: Final = 20
"""Levels that are indented; a guest may have made a chain without end."""

_HEAD: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {color-scheme: light dark; --line: #8884; --stripe: #8881; --user: #38c; --kernel: #999}
@media (prefers-color-scheme: dark) {:root {--user: #6bf; --kernel: #777}}
body {font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem}
h1 {font-size: 1.7rem; margin: 0; overflow-wrap: anywhere}
h2 {font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line)}
nav {margin: 1rem 0}
nav a {margin-right: 1rem}
table, svg {font: 12px/1.5 ui-monospace, monospace}
table {border-collapse: collapse; width: 100%}
th, td {text-align: left; vertical-align: top; padding: .15rem .75rem .15rem 0;
    border-bottom: 1px solid var(--line)}
td {overflow-wrap: anywhere; min-width: 3ch}
tr:nth-child(even) {background: var(--stripe)}
svg {width: 100%; height: auto}
text {fill: currentColor}
path {stroke: var(--line)}
.user {stroke: var(--user); stroke-width: 8}
.kernel {stroke: var(--kernel); stroke-width: 8}
.gap {color: #c33}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def head(title: str) -> str:
    """This is the begin of a page, up to its heading."""
    return _HEAD.replace("{title}", text(title))


def text(value: object) -> str:
    """This is a value as HTML that shows it and does nothing else; long numbers are addresses."""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    is_address = isinstance(value, int) and value > _ADDRESS
    return html.escape(escaped(f"{value:#x}" if is_address else str(value)))


def table(
    name: str,
    titles: Sequence[str],
    rows: Sequence[Sequence[object]],
    gaps: Iterable[Gap] = (),
) -> str:
    """This is a section with a table, and below it what could not be looked at."""
    more = f", {len(rows) - MOST} of them not shown" if len(rows) > MOST else ""
    first = "<tr><th>" + "<th>".join(title.replace("_", " ") for title in titles)
    body = ("<tr><td>" + "<td>".join(map(text, row)) for row in rows[:MOST])
    unseen = (text(f"{gap.structure}: {gap.reason}") for gap in gaps)
    missing = (f'<p class="gap">not seen: {words}' for words in unseen)
    heading = f'<h2 id="{name}">{name.replace("_", " ")} ({len(rows)}{more})</h2>'
    return "\n".join([heading, "<table>", *([first] if rows else []), *body, "</table>", *missing])


def timeline(processes: Sequence[Process], uptime_s: float) -> Iterator[str]:
    """This draws when each process was born, below its parent."""
    shown = list(branches(processes))[:MOST]
    yield '<h2 id="timeline">timeline</h2><p>A bar from the start of each process to the capture;'
    yield "blue: user processes, grey: kernel threads. Above: time since boot."
    yield f'<svg viewBox="0 0 {_RIGHT + 40} {_LINE * (len(shown) + 2)}">'
    for quarter in range(5):
        x = _LEFT + (_RIGHT - _LEFT) * quarter // 4
        label = duration(uptime_s * quarter // 4)
        yield f'<text x="{x}" y="{_LINE - 6}" text-anchor="middle">{label}</text>'
        yield f'<path d="M{x} {_LINE}V{_LINE * (len(shown) + 2)}"/>'
    for line, branch in enumerate(shown, 2):
        x, y = _LEFT, _LINE * line
        born = min(max(branch.process.start_time_s / uptime_s, 0), 1)
        x += round((_RIGHT - _LEFT) * born) - 1
        kind = "kernel" if branch.process.kernel_thread else "user"
        indent = _LINE * min(branch.depth, _MOST_DEPTH)
        yield f'<text x="{indent}" y="{y}">{text(branch.process.name)}</text>'
        yield f'<path class="{kind}" d="M{x} {y - 4}H{_RIGHT}"/>'
    yield "</svg>"
