"""Names what an analyst looks at first in one guest: 04_triage.py --qmp SOCKET, or --dump FILE.

Programs that talk to a network, code of deleted files, memory that can be written and run, and processes
that the task list does not show. All is of one moment: a live guest stands still for it, for milliseconds.
"""

import argparse
import sys
from collections.abc import Iterator

import qvmi
from qvmi.cli.printing.escape import escaped

NETWORK = ("tcp", "udp", "raw", "packet")


def triage(guest: qvmi.GuestOS) -> tuple[list[tuple[str, int, str]], list[qvmi.Gap]]:
    """This asks the guest, wherever its memory comes from: (what it is, pid, more) of each finding."""
    processes, by_pid = guest.processes(), guest.process_ids()
    sockets, mappings = guest.sockets(), guest.mappings()
    shown = {process.pid for process in processes}
    names = {process.pid: process.name for process in (*by_pid, *processes)}

    def found() -> Iterator[tuple[str, int, str]]:
        for process in by_pid:
            if process.pid not in shown:
                yield "hidden", process.pid, f"task_struct at {process.address:#x}"
        for one in sockets:
            if one.pid is not None and one.protocol.startswith(NETWORK):
                yield "network", one.pid, f"{one.protocol} {one.local} {one.remote} {one.state}"
        for at in mappings:
            if "x" in at.permissions and (at.deleted or "w" in at.permissions):
                kind = "deleted" if at.deleted else "writable"
                yield kind, at.pid, f"{at.start:#x} {at.permissions} {at.name}"

    named = [(kind, pid, f"{names.get(pid, '?')}: {more}") for kind, pid, more in found()]
    return named, [*processes.gaps, *by_pid.gaps, *sockets.gaps, *mappings.gaps]


def main() -> int:
    """This prints a line for each finding, and tells what could not be looked at."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--qmp", metavar="SOCKET", help="of a machine that runs")
    source.add_argument("--dump", metavar="FILE", help="with a machine's memory")
    chosen = parser.parse_args()
    with qvmi.attach_sync(chosen.qmp) if chosen.qmp else qvmi.open_dump(chosen.dump) as machine:
        findings, gaps = machine.capture(triage)
    for kind, pid, more in findings:
        print(f"{kind:<9}{pid:>7}  {escaped(more)}")  # names and paths are the guest's words
    for gap in gaps:
        print(f"not seen: {gap.structure}: {escaped(gap.reason)}", file=sys.stderr)
    return 4 if gaps else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except qvmi.QvmiError as error:
        sys.exit(repr(error))
