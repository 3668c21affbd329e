"""Looks at many machines at once, in one event loop: 03_many_machines.py SOCKET SOCKET …."""

import asyncio
import sys

import qvmi


async def summary(address: str) -> tuple[str, bool]:
    """This says in a line what runs in one machine; one that fails does not disturb the others."""
    try:
        async with qvmi.attach(address) as machine:
            facts = machine.guest.facts()
            processes = machine.guest.processes()
    except qvmi.QvmiError as error:
        return f"{address}: {error!r}", False
    users = sum(not process.kernel_thread for process in processes)
    return f"{address}: {facts.os} {facts.release!r}, {users} user processes", True


async def main(addresses: list[str]) -> int:
    """This prints the lines in the order of the addresses."""
    found = await asyncio.gather(*(summary(address) for address in addresses))
    for line, _ in found:
        print(line)
    return 0 if all(seen for _, seen in found) else 3


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
