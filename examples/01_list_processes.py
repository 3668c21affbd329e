"""Lists the processes of one guest: 01_list_processes.py /run/vm/qmp.sock."""

import asyncio
import sys

import qvmi


async def main(address: str) -> int:
    """This prints a line for each process, and tells what could not be looked at."""
    async with qvmi.attach(address) as machine:
        listing = machine.guest.processes()
    for process in listing:
        kind = "kernel" if process.kernel_thread else "user"
        # A name is whatever the guest says; repr() keeps it from doing anything to the terminal.
        print(f"{process.pid:>7} {process.ppid:>7} {process.uid:>10} {kind:<6} {process.name!r}")
    for gap in listing.gaps:
        print(f"not seen: {gap.structure}: {gap.reason!r}", file=sys.stderr)
    return 4 if listing.gaps else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program's name and one address
        sys.exit(f"usage: {sys.argv[0]} ADDRESS-OF-QMP")
    try:
        sys.exit(asyncio.run(main(sys.argv[1])))
    except qvmi.QvmiError as error:
        sys.exit(repr(error))
