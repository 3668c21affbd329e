"""Makes bridges in the network namespace it is run in, and tells how it fared, until its input ends.

``python -m tests.isolation.host_bridges together INSTANCE…`` makes all at once; ``… late INSTANCE`` gives a
command of a bridge's holder up before it ends, and gives two more.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.host_bridge import HostBridge, host_bridge


async def together(*instances: str) -> None:
    async with AsyncExitStack() as stack:
        making = [stack.enter_async_context(host_bridge(each, 1883)) for each in instances]
        made = await asyncio.gather(*making)
        await told([each.bridge.name for each in made])


async def late(instance: str) -> None:
    async with host_bridge(instance, 1883) as made:
        await told(
            [
                await outcome(made, "sleep", "3", timeout_s=0.1),
                await outcome(made, "sh", "-c", "echo told by the second >&2; exit 1"),
                await outcome(made, "true"),
            ]
        )


async def outcome(made: HostBridge, *command: str, timeout_s: float = 60.0) -> str:
    try:
        await made.run(*command, text="", timeout_s=timeout_s)
    except BusNetworkFailed as failure:
        return failure.said
    return "done"


async def told(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    what, *instances = sys.argv[1:]
    asyncio.run(together(*instances) if what == "together" else late(*instances))
