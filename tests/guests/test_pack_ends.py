"""What is left of a codepack's process when it ends: nothing that runs, no secret that is of use."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qvmi.bus.account import Account
from qvmi.errors import CodepackError
from qvmi.manager.jail import ADVISORY
from qvmi.manager.manager import Manager
from qvmi.manager.pack_spec import PackSpec
from tests.asynchronous import asynchronous, until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.straying_pack import PRINTED
from tests.guests.test_manager import is_there
from tests.guests.test_manager_policy import managing, next_that
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, greet_raw

WAIT_S = 100.0
STRAYING = PackSpec("straying", "tests.guests.straying_pack:Straying", 0.05, max_restarts=1)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


KNOCKING = PackSpec("knocking", "tests.guests.straying_pack:Knocking", 0.05, memory_bytes=512 << 20)
CAP_DAC_OVERRIDE = 1 << 1


@asynchronous
async def test_a_codepack_cannot_connect_to_qemu_or_its_alerts_say_that_the_policy_is_advisory(
    guest: Guest, state: Path
) -> None:
    own = state / "web/packs/knocking"
    own.mkdir(parents=True)
    for folder in (own, own.parent, own.parent.parent):
        folder.chmod(0o711)
    with socket.socket(socket.AF_UNIX) as harmless:
        harmless.bind(str(own / "harmless"))
        harmless.listen()
        (own / "harmless").chmod(0o777)
        (own / "sockets").write_text(f"{guest.qmp}\n{own / 'harmless'}\n")
        async with managing(guest, state, KNOCKING) as manager:
            await until((own / "told").exists, within_s=WAIT_S)
            jail = manager.fleet.jail
            caveats = manager.fleet.caveats
            assert is_socket(guest.qmp), "it is hidden from nobody else"
    told = json.loads((own / "told").read_text())
    assert told[str(own / "harmless")] == "connected", "else this tries nothing"
    assert jail.holds == (told[guest.qmp] != "connected")
    assert jail.holds == (ADVISORY not in caveats)
    assert jail.holds or f"{guest.qmp} can be connected to" in jail.in_words
    assert jail.holds or os.geteuid() != 0, "root can always hide it"
    assert told["limit"] == "kept"
    left = {int(told[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")}
    assert os.geteuid() != 0 or jail.confinement.other_uid or left == {CAP_DAC_OVERRIDE}
    assert guest.monitor.running()


def is_socket(path: str) -> bool:
    return Path(path).is_socket()


def answers(manager: Manager, accounts: tuple[Account, ...]) -> set[int]:
    """These are the broker's answers to somebody who has the secrets."""
    return {greet_raw(manager.broker.socket, account) for account in accounts}


async def looked(manager: Manager) -> None:
    await next_that(
        manager, lambda one: (one.codepack, one.body.get("sight")) == ("straying", "full")
    )
    (process,) = manager.fleet.running.values()
    await until(lambda: process.printed_bytes >= 2 * PRINTED, within_s=WAIT_S)


def kill(manager: Manager) -> None:
    (process,) = manager.fleet.running.values()
    os.kill(process.pid, signal.SIGKILL)


@asynchronous
async def test_a_codepack_that_is_killed_leaves_no_daemon_and_no_secret(
    guest: Guest, state: Path
) -> None:
    notes = state / "web/packs/straying/daemons"
    async with managing(guest, state, STRAYING) as manager:
        await looked(manager)
        first = manager.fleet.accounts.of("straying")
        (daemon,) = map(int, notes.read_text().split())
        assert is_there(daemon)
        kill(manager)
        await looked(manager)
        second = manager.fleet.accounts.of("straying")
        assert not is_there(daemon)
        assert answers(manager, first) == {NOT_AUTHORIZED}
        assert {one.secret for one in first}.isdisjoint(one.secret for one in second)
        kill(manager)
        with pytest.raises(CodepackError, match=r"it had printed \d+ bytes, at last: x") as ended:
            await looked(manager)
        assert len(str(ended.value)) < 1000
        assert answers(manager, second) == {NOT_AUTHORIZED}
    daemons = [int(pid) for pid in notes.read_text().split()]
    assert len(daemons) == 2
    assert not any(map(is_there, daemons))
    assert guest.monitor.running()
