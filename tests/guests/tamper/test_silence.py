"""Detection needs nothing of the guest: no network, no agent, no console, and not even that it runs.

The oracles are QEMU, which logs each command that it is given, and the guest's own count of the characters
that its serial ports have got.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.cli.declared.words import PACKS
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.observed_guest import ObservedGuest
from tests.built_in_packs import made
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process
from tests.guests.tamper.table import ELSEWHERE

LOGGED: Final = re.compile(r"handle_qmp_command mon (\S+) req: (.*)")
QUERIES: Final = re.compile(r"qmp_capabilities|query-\S+|qom-get|qom-list")
COUNTS: Final = "cat /proc/tty/driver/serial"


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig())


@contextmanager
def logged(guest: Guest) -> Iterator[list[dict[str, object]]]:
    """These are, when the block ends, the commands that QEMU got meanwhile but from the lab."""
    log = guest.folder / "qemu.log"
    guest.monitor.human("trace-event handle_qmp_command on")
    before = len(log.read_bytes())
    commands: list[dict[str, object]] = []
    try:
        yield commands
    finally:
        guest.monitor.human("trace-event handle_qmp_command off")
    rows = LOGGED.findall(log.read_bytes()[before:].decode())
    lab = rows[-1][0]  # who has just asked to log no more
    commands += [json.loads(text) for monitor, text in rows if monitor != lab]


def received(guest: Guest) -> list[int]:
    """These are the characters that each serial port has got, without those of this question."""
    said = guest.run(COUNTS).decode()
    own = len(f"{guest.control.number} run {COUNTS}\n")
    counts = {int(port): int(count) for port, count in re.findall(r"(\d+): .* rx:(\d+)", said)}
    return [counts[0], counts[1] - own]


def is_query(command: dict[str, object]) -> bool:
    if command["execute"] == "human-monitor-command":
        arguments = command["arguments"]
        assert isinstance(arguments, dict)
        return str(arguments["command-line"]).startswith("info ")
    return QUERIES.fullmatch(str(command["execute"])) is not None


def full_round(machine: qvmi.SyncMachine) -> dict[str, list[Finding]]:
    """This lets every detector look, and tells what each has found; none may have missed anything."""
    found = {}
    for name in set(PACKS) - ELSEWHERE:
        pack = made(name, 1.0)
        observed = ObservedGuest(machine.guest, name)
        given = pack.inspect(observed, machine.machine.memory)
        found[name] = [one for one in given if type(one) is Finding]
        assert not observed.gap_count, (name, observed.gaps)
    return found


def test_all_detectors_look_at_a_guest_that_has_no_network_and_hears_nothing_while_it_stands_still(
    guest: Guest, profiles: Path
) -> None:
    assert guest.monitor.human("info network") == ""
    assert "virtserialport" not in guest.monitor.human("info qtree")
    hidden = hide_process(guest, "httpd")
    before = received(guest)
    asked = len(f"{guest.control.number} run {COUNTS}\n")
    guest.monitor.execute("stop")
    try:
        with logged(guest) as commands, qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
            mapped = Path("/proc/self/maps").read_text().splitlines()
            found = full_round(machine)
    finally:
        guest.monitor.execute("cont")
    after = received(guest)
    show_process(guest, hidden)
    assert after == [before[0], before[1] + asked]
    assert [one for one in commands if not is_query(one)] == []
    assert {"qmp_capabilities", "qom-get"} <= {one["execute"] for one in commands}
    ram = [line.split()[1] for line in mapped if str(guest.ram_paths[0]) in line]
    assert set(ram) == {"r--s"}
    assert len(found) >= 14
    [finding] = found["hidden-processes"]
    assert finding.evidence[0].facts["pid"] == hidden.pid
