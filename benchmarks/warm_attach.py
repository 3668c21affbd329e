"""From a kernel seen before to its process list: in a running program, and as a whole process.

``python benchmarks/warm_attach.py [--quick]``. The whole processes are ``qvmi ps`` and the drgn script
that does the same; both have run before, so that everything they read is in the page cache.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from looks import KERNEL, drgn_cold, make_lab, same_processes, stopped, vmlinux, warm
from race import Side, Size, agree, in_turns, process_environment, run, tell, tell_ratio

from tests.guests.lab import Guest, GuestConfig

LIMIT_S = 0.006
MOST_OF_PEER = 0.5
ENDS_S = 60
COMMAND = "import sys; from qvmi.cli.main import main; sys.exit(main())"
"""What the console script ``qvmi`` does."""
PEER = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import peer_drgn
program = peer_drgn.attached(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps(peer_drgn.processes(program)))
"""


def in_a_program(guest: Guest, debug_information: Path, size: Size) -> None:
    """This races the attach and the first list, all modules imported."""
    with asyncio.Runner() as runner, warm(runner, guest) as ours:
        rounds = size.of(full=60, quick=1)
        times, peer = in_turns(rounds, ours, drgn_cold(guest, debug_information))
    tell("warm attach to process list", times, limit_s=LIMIT_S, peer="drgn", theirs=peer)


def as_a_process(guest: Guest, debug_information: Path, size: Size) -> None:
    """This races the whole processes, from the start of the interpreter to its end."""
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        environment = process_environment(XDG_CACHE_HOME=folder)
        ours = [sys.executable, "-c", COMMAND, "--qmp", guest.qmp, "ps", "--json"]
        theirs = [sys.executable, "-c", PEER, str(guest.ram_paths[0]), str(debug_information)]
        with stopped(guest):
            items = json.loads(output_of(ours, environment))["items"]
            peers = json.loads(output_of(theirs, environment))
        agree(
            "processes by command",
            [tuple(item.values()) for item in items],
            list(map(tuple, peers)),
        )
        rounds = size.of(full=15, quick=1)
        mine, peer = in_turns(rounds, timed(ours, environment), timed(theirs, environment))
    ratio = mine.median / peer.median
    tell_ratio(
        "whole process that lists the processes",
        str(mine),
        ratio,
        beside=f"drgn {peer}",
        target=f"at most {MOST_OF_PEER}",
        reached=ratio <= MOST_OF_PEER,
    )


def output_of(command: Sequence[str], environment: dict[str, str]) -> bytes:
    """This runs a command that must succeed."""
    ended = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, timeout=ENDS_S, check=True
    )
    return ended.stdout


def timed(command: Sequence[str], environment: dict[str, str]) -> Side:
    """This takes the time of a whole process."""

    def side() -> float:
        began = time.perf_counter()
        output_of(command, environment)
        return time.perf_counter() - began

    return side


def main(size: Size) -> None:
    """This races on one thawed guest."""
    lab = make_lab()
    debug_information = vmlinux(lab)
    with lab.restore(GuestConfig(kernel=KERNEL)) as guest:
        same_processes("processes", guest, debug_information)
        in_a_program(guest, debug_information, size)
        as_a_process(guest, debug_information, size)


if __name__ == "__main__":
    run(main)
