"""A program that acts on one alert, and kills itself as a step begins.

Run as ``python -m tests.guests.cut_off_response QMP STATE BOOK POLICY ALERT STEP``.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

import qvmi
from qvmi.audit import LOGGER
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.topic import name_from
from qvmi.cli.handlers.responding import granted, opened_journal
from qvmi.codepacks.alert import Alert
from qvmi.manager.response.playbook_file import read_playbooks
from qvmi.manager.response.responder import Responder
from qvmi.policy import read_policies

__all__: list[str] = []


class Killer(logging.Handler):
    """This kills its process when the audit log is told that a step begins."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._words = f"step {step} begins"

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)


async def main(qmp: str, state: str, book: Path, policy: Path, alert: bytes, step: int) -> None:
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.addHandler(Killer(step))
    found = msgspec.json.decode(alert, type=Alert)
    async with qvmi.attach(qmp) as machine:
        vm = name_from(machine.address)
        responder = Responder(
            machine,
            read_playbooks(book),
            vm=vm,
            policy=granted(read_policies(policy)),
            journal=opened_journal(state, vm),
            tell=lambda _: None,
        )
        body: dict[str, object] = msgspec.to_builtins(found)
        responder.take(
            Message(vm=vm, codepack=found.codepack, kind="alert", time=time.time(), body=body)
        )
        async with in_process([responder.account]) as channel:
            await responder.run(channel)


if __name__ == "__main__":
    where, kept, book_file, policy_file, alert_file, last = sys.argv[1:]
    told = Path(alert_file).read_bytes()
    asyncio.run(main(where, kept, Path(book_file), Path(policy_file), told, int(last)))
