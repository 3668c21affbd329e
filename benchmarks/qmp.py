"""What the first conversation of an attach costs: qvmi's session, qemu.qmp's own, and the floor.

``python benchmarks/qmp.py [ROUNDS]`` starts a QEMU with firmware alone and, in turns, connects and asks
the same five things at once in each way. The floor is a bare asyncio protocol that sends everything
in one write: what QEMU and the kernel need.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from qemu.qmp import QMPClient

from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.session import QmpSession

NEGOTIATION = ("qmp_capabilities", {"enable": ["oob"]})
QUESTIONS: tuple[tuple[str, dict[str, object]], ...] = (
    ("human-monitor-command", {"command-line": "info registers -a"}),
    ("human-monitor-command", {"command-line": "info mtree -f -o"}),
    ("query-memdev", {}),
    ("query-status", {}),
    ("query-version", {}),
)
Close = Callable[[], Awaitable[object]]


async def by_session(path: str) -> Close:
    """This asks through qvmi."""
    session = await QmpSession.connect(path)
    async with concurrently() as group:
        for command, arguments in QUESTIONS:
            group.create_task(session.execute(command, arguments))
    return session.close


async def by_qemu_qmp(path: str) -> Close:
    """This asks through qemu.qmp as it is."""
    client = QMPClient()
    await client.connect(path)
    await asyncio.gather(*(client.execute(*question) for question in QUESTIONS))
    return client.disconnect


async def by_bare_protocol(path: str) -> Close:
    """This writes and counts lines, and does nothing else."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    await reader.readline()
    asked = [{"execute": c, "arguments": a} for c, a in (NEGOTIATION, *QUESTIONS)]
    writer.write(b"".join(json.dumps(one).encode() + b"\n" for one in asked))
    for _ in asked:
        json.loads(await reader.readline())
    writer.close()
    return writer.wait_closed


WAYS = {"QmpSession": by_session, "qemu.qmp": by_qemu_qmp, "floor": by_bare_protocol}


async def race(path: str, rounds: int) -> None:
    """This prints the median and spread of each way, and its ratio to the floor."""
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu = dict.fromkeys(WAYS, 0.0)
    for _ in range(rounds):
        for name, way in WAYS.items():
            began, spent = time.perf_counter(), time.process_time()
            close = await way(path)
            wall[name].append(time.perf_counter() - began)
            cpu[name] += time.process_time() - spent
            await close()
    floor = statistics.median(wall["floor"])
    for name, times in wall.items():
        median = statistics.median(times)
        print(
            f"{name:11} median {median * 1e3:5.2f} ms [{min(times) * 1e3:.2f}-{max(times) * 1e3:.2f}]"
            f"  CPU {cpu[name] / rounds * 1e3:4.2f} ms  {median / floor:4.2f} x floor"
        )


def main() -> None:
    """This starts the machine and runs the race."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        path = f"{folder}/qmp.sock"
        served = ("-qmp", f"unix:{path},server=on,wait=off", "-smp", "2")
        base = ("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35")
        machine = subprocess.Popen([*base, *served])
        try:
            while not Path(path).exists():
                time.sleep(0.01)
            asyncio.run(race(path, rounds))
        finally:
            machine.kill()
            machine.wait()


if __name__ == "__main__":
    main()
