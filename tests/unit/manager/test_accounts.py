"""Who may say what on a machine's bus, tried with mosquitto_sub and mosquitto_pub."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.topic import TopicFilter
from qvmi.manager.accounts import outbox_account, pack_account, pack_login, service_account
from qvmi.policy import READ_ONLY, Grant, Policy
from tests.asynchronous import asynchronous

READER = pack_account("web", "reader", READ_ONLY)
CAPTURER = pack_account("web", "capturer", Policy(frozenset({Grant.NETWORK_CAPTURE})))
OUTBOX = outbox_account("web", "reader")
LISTENER = Account.of_reader("listener", TopicFilter())
ALL = [READER, CAPTURER, OUTBOX, LISTENER, service_account("web")]

SAID = {
    "qvmi/v1/web/reader/request/manager": (READER, True),
    "qvmi/v1/web/reader/request/other": (READER, False),
    "qvmi/v1/web/reader/status": (READER, True),
    "qvmi/v1/web/reader/reply/manager": (READER, False),
    "qvmi/v1/web/capturer/status": (CAPTURER, True),
    "qvmi/v1/web/capturer/request/manager": (CAPTURER, False),
    "qvmi/v1/web/reader/request/nobody": (CAPTURER, False),
    "qvmi/v1/web/reader/alert": (OUTBOX, True),
    "qvmi/v1/web/reader/request/clock": (OUTBOX, False),
}
"""A topic, who publishes there, and whether that is let through."""

LAST = "qvmi/v1/web/manager/status"


def client(socket: Path, account: Account, program: str, *words: str) -> list[str]:
    """This is the command line of one of the broker's own clients."""
    who = ("--unix", str(socket), "-u", account.name, "-P", account.secret, "-V", "5", "-q", "1")
    return ["stdbuf", "-oL", program, *who, *words]


@asynchronous
async def test_the_broker_lets_codepacks_ask_the_manager_whose_policy_has_a_use_for_it() -> None:
    async with mosquitto(ALL) as broker:
        listening = await asyncio.create_subprocess_exec(
            *client(broker.socket, LISTENER, "mosquitto_sub", "-t", "qvmi/#", "-F", "%t", "-d"),
            stdout=subprocess.PIPE,
        )
        assert listening.stdout is not None
        try:
            async with asyncio.timeout(60):
                while b"Subscribed" not in await listening.stdout.readline():
                    pass
                for topic, (who, _) in SAID.items():
                    await says(broker.socket, who, topic)
                await says(broker.socket, service_account_of(ALL), LAST)
                heard = []
                while (line := (await listening.stdout.readline()).decode().strip()) != LAST:
                    heard.append(line)
        finally:
            listening.kill()
            await listening.wait()
    through = {topic for topic, (_, passes) in SAID.items() if passes}
    assert {line for line in heard if line.startswith("qvmi/")} == through


def service_account_of(accounts: list[Account]) -> Account:
    return next(one for one in accounts if one.name == "web.manager")


async def says(socket: Path, who: Account, topic: str) -> None:
    command = client(socket, who, "mosquitto_pub", "-t", topic, "-m", "{}")
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    await process.wait()


@pytest.mark.parametrize("account", [READER, CAPTURER])
def test_a_process_logs_in_as_the_account_that_the_broker_knows(account: Account) -> None:
    login = pack_login("web", account.name.removeprefix("web."), account.secret)
    assert (login.name, login.secret) == (account.name, account.secret)
