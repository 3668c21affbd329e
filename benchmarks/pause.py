"""How long a guest stands still for an exact process list, beside the shortest pause there is.

``python benchmarks/pause.py [--quick]``. The shortest pause is QMP's ``stop`` and ``cont`` one after
the other over a bare socket. QEMU's own clock tells both: its STOP and RESUME events have the time.
"""

import asyncio

from looks import KERNEL, make_lab
from race import Side, Size, Times, agree, in_turns, run, tell_ratio

import qvmi
from tests.guests.lab import Guest, GuestConfig

Processes = qvmi.Listing[qvmi.Process]
MOST_OF_BARE = 1.3
ABOVE_S = 0.001
"""The target is so much more than that share of the bare pause."""


def standstill(guest: Guest) -> float:
    """This is how long the guest stood still, by the events since the last call, in seconds."""
    guest.monitor.execute("query-status")
    told = {event["event"]: event["timestamp"] for event in guest.monitor.events}
    guest.monitor.events.clear()
    stop, resume = (
        told[name]["seconds"] + told[name]["microseconds"] / 1e6 for name in ("STOP", "RESUME")
    )
    return float(resume - stop)


def bare(guest: Guest) -> Side:
    """This stops and resumes, and does nothing in between."""

    def side() -> float:
        guest.monitor.events.clear()
        guest.monitor.execute("stop")
        guest.monitor.execute("cont")
        return standstill(guest)

    return side


def captured(guest: Guest, runner: asyncio.Runner, machine: qvmi.Machine) -> Side:
    """This captures the process list."""

    def side() -> float:
        guest.monitor.events.clear()
        runner.run(machine.capture(lambda linux: linux.processes()))
        return standstill(guest)

    return side


async def both_ways(machine: qvmi.Machine) -> tuple[Processes, Processes]:
    """This lists the processes of one moment in a plain pause, and by a capture."""
    async with machine.paused():
        return machine.guest.processes(), await machine.capture(lambda linux: linux.processes())


def race(guest: Guest, size: Size, what: str) -> None:
    """This races one guest, and prints the figures."""
    with asyncio.Runner() as runner:
        attachment = qvmi.attach(guest.qmp)
        machine = runner.run(attachment.__aenter__())
        try:
            exact, found = runner.run(both_ways(machine))
            agree(what, exact.items, found.items)
            rounds = size.of(full=200, quick=2)
            floor, ours = in_turns(rounds, bare(guest), captured(guest, runner, machine))
        finally:
            runner.run(attachment.__aexit__(None, None, None))
    told(what, floor, ours)


def told(what: str, floor: Times, ours: Times) -> None:
    """This prints both, with the target."""
    limit = MOST_OF_BARE * floor.median + ABOVE_S
    tell_ratio(
        what,
        str(ours),
        ours.median / floor.median,
        beside=f"bare stop and cont {floor}",
        target=f"at most {MOST_OF_BARE} times bare plus 1 ms, {limit * 1e3:.2f} ms",
        reached=ours.median <= limit,
    )


def main(size: Size) -> None:
    """This races a guest at rest, and one that forks as fast as it can."""
    with make_lab().restore(GuestConfig(kernel=KERNEL)) as guest:
        race(guest, size, "standstill for a process list, guest at rest")
        guest.start_storm()
        race(guest, size, "standstill for a process list, guest in a fork storm")
        guest.stop_storm()


if __name__ == "__main__":
    run(main)
