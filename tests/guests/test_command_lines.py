"""Command lines and environments are those of the guest's own /proc/PID/cmdline and environ."""

from collections.abc import Callable
from pathlib import Path

import qvmi
from qvmi.semantics.guest_os import Variable
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest


def _strings(text: str) -> list[str]:
    """These are the strings of a file of NUL-terminated ones; the last may lack its NUL."""
    parts = text.encode("latin-1").split(b"\0")
    return [shown_name(part) for part in (parts if parts[-1] else parts[:-1])]


def _assignment(variable: Variable) -> str:
    return variable.name if variable.value is None else f"{variable.name}={variable.value}"


@asynchronous
async def test_command_lines_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = guest.proc("cmdline")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        processes = machine.guest.processes()
        listing = machine.guest.command_lines()
    assert not listing.gaps
    seen = {row.pid: list(row.arguments) for row in listing}
    assert seen.keys() == {process.pid for process in processes}
    lasting = seen.keys() & true.keys()
    assert {pid: seen[pid] for pid in lasting} == {pid: _strings(true[pid]) for pid in lasting}
    proof_count(sum(1 for pid in lasting if seen[pid]))


@asynchronous
async def test_environments_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = guest.proc("environ")
    compared = 0
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for process in machine.guest.processes():
            listing = machine.guest.environment(process)
            assert not listing.gaps
            seen = [_assignment(variable) for variable in listing]
            assert seen == _strings(true.get(process.pid, "")), process.name
            compared += len(seen)
    proof_count(compared)


@asynchronous
async def test_hostile_words_are_their_very_bytes(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "hostile-args")
        (row,) = machine.guest.command_lines(owner)
        secrets = [v.value for v in machine.guest.environment(owner) if v.name == "SECRET"]
    assert row.arguments == (
        "hostile args",
        "\x1b[31mred\x1b[0m",
        "[bold red]x[/]",
        "<script>alert(1)</script>",
        "\\xff\\xfe",
        "two\nlines",
        "",
        "--flag=a b",
    )
    assert secrets == ["secret-marker-4711"]


@asynchronous
async def test_a_title_that_runs_into_the_environment_is_shown_as_proc_does(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "title")
        (row,) = machine.guest.command_lines(owner)
    (title,) = row.arguments
    assert title.startswith("title_x_")
    assert "=" in title
