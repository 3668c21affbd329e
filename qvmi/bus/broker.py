"""A mosquitto of our own: a child on a Unix socket in a private folder, started again when it ends."""

import asyncio
import logging
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from qvmi.bus.account import Account
from qvmi.bus.broker_log import BrokerLog
from qvmi.bus.message import Message
from qvmi.bus.mosquitto_config import (
    CERTIFICATE_FILE,
    CONFIG_FILE,
    KEY_FILE,
    OWN_SOCKET,
    SOCKET,
    account_files,
    files,
)
from qvmi.bus.mqtt import MqttBus
from qvmi.bus.place import HERE, Place
from qvmi.bus.private_folder import private_folder
from qvmi.bus.tls_listener import TlsListener
from qvmi.bus.unix_socket import MAX_SOCKET_PATH, accepts
from qvmi.errors import BrokerUnavailable, BusError, BusRefused

__all__ = ["Broker", "find_mosquitto", "mosquitto"]

START_TIMEOUT_S: Final = 10.0
"""Longest wait until mosquitto accepts; it takes 17 to 40 ms on an idle machine."""

STOP_TIMEOUT_S: Final = 2.0
"""Longest wait for mosquitto to end when asked; then it is killed. It keeps nothing on disk."""

MAX_RESTARTS: Final = 5
"""Ends in a row after which something is wrong that another start does not mend."""

STABLE_S: Final = 60.0
"""A mosquitto that ran for so long was well; its end does not count as one of a row."""

_POLL_S: Final = 0.005
"""Between two looks at whether the socket accepts."""

_REREAD_POLL_S: Final = 0.02
"""Between two looks at whether mosquitto has read its accounts again, which it does at once when idle."""

_MAX_THROWN_OUT: Final = 16
"""Connections that are ended at a time; each takes milliseconds."""

_MARK: Final = "qvmi.accounts-are-read"
"""The account that shows it."""

_SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin")
"""Where distributions install mosquitto, which are not in every user's PATH."""

_log: Final = logging.getLogger(__name__)
_audit: Final = logging.getLogger("qvmi.audit")

_LIFELINE: Final = Path(__file__).with_name("lifeline.py")


def find_mosquitto(path: str | None = None) -> Path:
    """This finds the mosquitto program.

    Args:
        path: folders to look in, joined by colons; None for PATH and the system's own.

    Raises:
        BrokerUnavailable: there is none; the message says how to install one.
    """
    folders = path or os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    program = shutil.which("mosquitto", path=folders)
    if program is None:
        raise BrokerUnavailable(
            "no mosquitto program in PATH, /usr/local/sbin or /usr/sbin: apt install mosquitto"
        )
    return Path(program)


@asynccontextmanager
async def mosquitto(
    accounts: Sequence[Account],
    *,
    program: Path | None = None,
    tls: TlsListener | None = None,
    place: Place = HERE,
) -> AsyncIterator["Broker"]:
    """This runs a mosquitto that these accounts may enter, until the block ends.

    Args:
        accounts: who may enter.
        program: mosquitto itself; None looks for it.
        tls: where it listens besides its Unix socket; None for nowhere.
        place: where it runs, and an address that it listens at there.

    Raises:
        UsageError: the listener's certificate or key cannot be read.
        BrokerUnavailable: there is no mosquitto, or it does not start; the message holds its words.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder())
            root = place.as_root or os.geteuid() == 0
            (folder / OWN_SOCKET).parent.mkdir(mode=0o700)
            _write(folder, files(accounts, root=root, tls=tls, place=place, own=True))
            if tls:
                _write(folder, dict(zip((CERTIFICATE_FILE, KEY_FILE), tls.pem(), strict=True)))
        except OSError as error:
            raise BrokerUnavailable(f"no folder for the broker: {error}") from error
        broker = Broker(program or find_mosquitto(), folder, accounts, place)
        supervision = asyncio.create_task(broker.supervise(), name="qvmi-broker")
        try:
            await broker.accepting()
            yield broker
        finally:
            supervision.cancel()
            await asyncio.wait({supervision, *broker.abandon()})


class Broker:
    """This is a running mosquitto; :func:`mosquitto` makes it.

    Attributes:
        socket: the Unix socket it listens on, which others may be let to. Its owner connects at another
            one: strangers may use up all connections of this one.
        place: where it runs.
        starts: how often it was started.
        log: whom it has refused by itself.
    """

    def __init__(
        self, program: Path, folder: Path, accounts: Sequence[Account], place: Place = HERE
    ) -> None:
        self.socket = folder / SOCKET
        self.place = place
        self.starts = 0
        self.log = BrokerLog(self._throw_out)
        self._throwing_out: set[asyncio.Task[None]] = set()
        self._own_socket = folder / OWN_SOCKET
        self._program = program
        self._folder = folder
        self._accounts = {account.name: account for account in accounts}
        self._changing = asyncio.Lock()
        self._process: Process | None = None
        self._settled = asyncio.Event()
        self._failure = ""
        if len(os.fsencode(self._own_socket)) > MAX_SOCKET_PATH:
            raise BrokerUnavailable(
                f"{self.socket}: too long for a Unix socket; set TMPDIR shorter"
            )

    @property
    def pid(self) -> int | None:
        """This is mosquitto's process id; None while there is no process."""
        return None if self._process is None else self._process.pid

    def abandon(self) -> Collection[asyncio.Task[None]]:
        """This gives up what was begun besides, and is what is to be waited for."""
        for ending in self._throwing_out:
            ending.cancel()
        return frozenset(self._throwing_out)

    async def accepting(self) -> None:
        """This waits until mosquitto accepts connections.

        Raises:
            BrokerUnavailable: it does not start, or ended too often.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._settled.wait()
        except TimeoutError:
            raise BrokerUnavailable(f"{self._program} does not start") from None
        if self._failure:
            raise BrokerUnavailable(self._failure)

    async def connect(self, account: Account, *, will: Message | None = None) -> MqttBus:
        """This connects an account; a broker that ended or hangs is started again and waited for.

        Raises:
            BusRefused: the broker does not accept the account.
            BrokerUnavailable: it does not start, ended too often, or does not answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_S
        while True:
            await self.accepting()
            process = self._process
            try:
                return await MqttBus.connect(self._own_socket, account, will=will)
            except BrokerUnavailable:
                if loop.time() > deadline:
                    raise
            if process is not None and process.returncode is None:
                process.kill()  # it hangs, or it is ending anyway
            await asyncio.sleep(_POLL_S)

    async def admit(self, account: Account) -> None:
        """This lets one more account in, or an account in with another secret or other rights.

        Nobody else's connection is touched.

        Raises:
            BrokerUnavailable: it does not take note of the change.
        """
        async with self._changing:
            known = account.name in self._accounts
            self._accounts[account.name] = account
            await self._have_accounts_read()
        if known:  # whoever is connected with the old secret is thrown out by its successor
            await (await self.connect(account)).close()

    async def revoke(self, name: str) -> None:
        """This lets an account in no more, and ends its connection; nobody else's is touched.

        On return its secret is worth nothing. Revoking one that is not let in does nothing.

        Raises:
            BrokerUnavailable: the broker does not take note of the change.
        """
        async with self._changing:
            if self._accounts.pop(name, None) is not None:
                _audit.warning("revoked on the bus: the account %s", name)
                await self._have_accounts_read()

    async def supervise(self) -> None:
        """This runs mosquitto, again when it ends, until cancelled or until it is no use."""
        loop = asyncio.get_running_loop()
        ends = 0
        while not self._failure:
            began = loop.time()
            last_words = await self._run_once()
            ends = 1 if loop.time() - began > STABLE_S else ends + 1
            if ends > MAX_RESTARTS:
                self._fail(f"mosquitto ended {ends} times in a row: {last_words}")

    def _throw_out(self, name: str) -> None:
        """This ends the connection of an account, and with it all that the broker keeps for that."""
        account = self._accounts.get(name)
        if account is not None and len(self._throwing_out) < _MAX_THROWN_OUT:
            ending = asyncio.create_task(self._succeed(account), name="qvmi-broker-throw-out")
            self._throwing_out.add(ending)
            ending.add_done_callback(self._throwing_out.discard)

    async def _succeed(self, account: Account) -> None:
        """This connects in the name of an account, which ends the connection that it has."""
        try:
            await (await MqttBus.connect(self._own_socket, account)).close()
        except BusError as error:
            # It is revoked, or the broker has ended and it has no connection any more.
            _log.debug("%s is not thrown out: %s", account.name, error)

    async def _have_accounts_read(self) -> None:
        """This has mosquitto read the accounts again, and waits until it has.

        It says nothing when it has. So each time the files hold one more account, which is new and may
        do nothing: once that is let in, what else they hold is in force.
        """
        mark = Account(_MARK)
        _write(self._folder, account_files([*self._accounts.values(), mark]))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_S
        while loop.time() < deadline:
            process = self._process
            if process is not None and process.returncode is None:
                process.send_signal(signal.SIGHUP)
            try:
                return await (await MqttBus.connect(self._own_socket, mark)).close()
            except (BusRefused, BrokerUnavailable):  # not yet read, or just starting again
                await asyncio.sleep(_REREAD_POLL_S)
        raise BrokerUnavailable("mosquitto does not read its accounts again")

    async def _run_once(self) -> str:
        """This runs mosquitto until it ends, and returns the end of its log."""
        try:
            process = self._process = await self._spawn()
        except OSError as error:
            return self._fail(f"{self._program} cannot be run: {error}")
        log = asyncio.create_task(self.log.follow(process.stderr), name="qvmi-broker-log")
        accepted = False
        try:
            accepted = await self._accepts(process)
            if accepted:
                self._settled.set()
                await process.wait()
                _log.warning("mosquitto (process %d) ended: %s", process.pid, process.returncode)
        finally:
            self._settled.clear()
            await _stop(process)
            self._process = None
            last_words = await log
        return last_words if accepted else self._fail(f"mosquitto does not start: {last_words}")

    async def _spawn(self) -> Process:
        """This starts mosquitto in a session of its own, so that ^C at a terminal does not end it."""
        self.starts += 1
        return await asyncio.create_subprocess_exec(
            *self.place.enter,  # first: who enters a user namespace loses the lifeline
            *(sys.executable, "-I", "-S", _LIFELINE, str(os.getpid())),
            *(self._program, "-c", CONFIG_FILE),
            cwd=self._folder,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            start_new_session=True,
        )

    async def _accepts(self, process: Process) -> bool:
        """This waits until the socket accepts; False if mosquitto ended or took too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None:
                    if await accepts(self.socket):
                        return True
                    await asyncio.sleep(_POLL_S)
        return False

    def _fail(self, reason: str) -> str:
        self._failure = reason
        self._settled.set()
        return reason


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """This writes files that only their owner may read, each whole or not at all."""
    for name, text in texts.items():
        new = folder / f"{name}.new"
        new.touch(mode=0o600)
        new.write_text(text, encoding="ascii")
        new.replace(folder / name)


async def _stop(process: Process) -> None:
    """This ends mosquitto, by force if it does not end when asked."""
    for end in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            end()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
