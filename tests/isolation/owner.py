"""A program that owns a bus network until its input ends, as a manager does, so that tests can kill it.

It is run as ``python -m tests.isolation.owner WAY INSTANCE [QEMU…]``, and prints JSON: where all is.
"""

import asyncio
import dataclasses
import json
import sys
from asyncio.subprocess import DEVNULL

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.manager.bus_network.level import Choice, Way
from qvmi.manager.bus_network.network import bus_network

SERVICES = ("first", "second")


async def main(way: str, instance: str, *qemu: str) -> None:
    account = Account.of_codepack("web", "pack")
    async with (
        bus_network(Choice(Way[way]), instance=instance) as network,
        mosquitto([account], place=network.place) as broker,
    ):
        seats = [await network.seat(service, broker.socket) for service in SERVICES]
        machine = None
        if qemu:
            command = seats[0].command(*qemu)
            machine = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL)
        told = {
            "broker": broker.pid,
            "machine": machine.pid if machine else None,
            "socket": str(broker.socket),
            "name": account.name,
            "secret": account.secret,
            "bridge": network.bridge.name if network.bridge else None,
            "seats": [dataclasses.asdict(seat) for seat in seats],
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        if machine:
            machine.kill()
            await machine.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
