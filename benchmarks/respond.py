"""How long it takes from a process that is hidden in a guest until its NIC's link is down.

``python benchmarks/respond.py [--quick]``. The time begins when the list of tasks has been changed and the
guest runs again, and ends when QEMU has answered ``set_link``: looks until the codepack is sure, the bus,
the responder and its journal. Without a question, and with one that the codepack answers by a further look.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Final

from looks import make_lab
from race import Disagreement, Size, percentile, run

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.manager.response.journal import Journal
from qvmi.manager.response.playbook_file import parse_playbooks
from qvmi.manager.response.responder import Responder
from qvmi.manager.watch import watch
from qvmi.policy import Grant, Policy
from tests.guests.lab import Guest
from tests.guests.response_guest import CONFIG, plugged
from tests.guests.rootkit import hide_process, show_process

INTERVALS_S: Final = (0.05, 1.0)
BOOK: Final = """\
version = 1
[playbooks.one]
at-exit = "undo"
[playbooks.one.when]
codepack = "hidden-processes"
{ask}
[[playbooks.one.then]]
do = "nic-down"
"""
ASK: Final = 'ask = {codepack = "hidden-processes", deadline-s = 60}'


async def one(
    guest: Guest, machine: qvmi.Machine, folder: Path, interval_s: float, ask: str
) -> float:
    """This is the time of one round, in seconds."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def tell(message: Message) -> None:
        if message.body.get("outcome") == "done" and not done.done():
            done.set_result(time.perf_counter())

    with Journal(folder / "journal") as journal:
        responder = Responder(
            machine,
            parse_playbooks("book.toml", BOOK.format(ask=ask).encode()),
            vm="web",
            policy=Policy(frozenset({Grant.NIC})),
            journal=journal,
            tell=tell,
        )
        packs = [HiddenProcesses(interval_s)]
        async with watch(
            machine, packs=packs, vm="web", companions=[responder], asked={"hidden-processes"}
        ) as messages:
            if (status := await anext(messages)).body.get("sight") != "full":
                raise Disagreement(f"the guest is not seen: {status.body}")
            await asyncio.sleep(random.uniform(0, interval_s))  # noqa: S311 - anywhere between two looks
            hidden = hide_process(guest, "httpd")
            began = time.perf_counter()
            try:
                async for message in messages:
                    responder.take(message)
                    if message.kind == "alert":
                        break
                return await done - began
            finally:
                show_process(guest, hidden)
                await responder.close()


async def measured(guest: Guest, size: Size) -> None:
    """This tells the times."""
    rounds = size.of(full=50, quick=2)
    async with qvmi.attach(guest.qmp) as machine:
        for interval_s in INTERVALS_S[: size.of(full=len(INTERVALS_S), quick=1)]:
            for ask in ("", ASK):
                times = []
                for _ in range(rounds):
                    with tempfile.TemporaryDirectory(prefix="qvmi-respond-") as folder:
                        times.append(await one(guest, machine, Path(folder), interval_s, ask))
                times.sort()
                how = "with a question" if ask else "without a question"
                print(
                    f"looks each {interval_s:g} s, {how}: p50 {percentile(times, 0.5):.3f} s,"
                    f" p99 {percentile(times, 0.99):.3f} s from tamper to link down ({rounds} rounds)"
                )


def main(size: Size) -> None:
    """This measures."""
    lab = make_lab()
    with lab.restore(CONFIG) as guest, tempfile.TemporaryDirectory() as folder:
        plugged(guest, Path(folder))
        asyncio.run(measured(guest, size))


if __name__ == "__main__":
    run(main)
