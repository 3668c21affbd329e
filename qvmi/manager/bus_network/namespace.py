"""A network namespace that nothing but this program's own descriptors and children hold.

It has no name and no file: whoever holds it is killed, and the kernel removes it with all that is in it. The
processes that live in it are started with a lifeline (``qvmi/bus/lifeline.py``), so that they are killed too.

References: namespaces(7); user_namespaces(7); network_namespaces(7); unshare(1); nsenter(1).
"""

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.command import COMMAND_TIMEOUT_S, run

__all__ = ["Namespace", "new_namespace", "unshare_command"]

_USER: Final = ("--user", "--map-root-user")

_READY: Final = b"made\n"

_HOLD: Final = ("sh", "-c", "echo made; read held")
"""It lives until its input ends: when this program has taken the namespace over, or was killed before."""


def unshare_command(*, rootless: bool) -> tuple[str, ...]:
    """This is the command that runs another one in a new network namespace."""
    return ("unshare", *(_USER if rootless else ()), "--net", "--")


@dataclass(frozen=True, slots=True)
class Namespace:
    """This is a network namespace, and the user namespace that it belongs to where it has one of its own.

    Attributes:
        net: a descriptor of the network namespace.
        user: one of the user namespace; None for root's.
    """

    net: int
    user: int | None

    @property
    def enter(self) -> tuple[str, ...]:
        """This is what goes before a command that is to run in it."""
        here = f"/proc/{os.getpid()}/fd"
        # This program's descriptors and no process id: a number that was given away twice leads elsewhere.
        user = () if self.user is None else (f"--user={here}/{self.user}",)
        return ("nsenter", *user, f"--net={here}/{self.net}", "--")

    async def run(self, *command: str, text: str = "") -> str:
        """This runs a command in it; see `command.run`.

        Raises:
            BusNetworkFailed: as there.
        """
        return await run(*self.enter, *command, text=text)


@asynccontextmanager
async def new_namespace(*, rootless: bool) -> AsyncIterator[Namespace]:
    """This makes an empty network namespace, which is let go of when the block ends.

    Raises:
        BusNetworkFailed: this host does not allow it.
    """
    command = (*unshare_command(rootless=rootless), *_HOLD)
    try:
        maker = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        raise BusNetworkFailed(command[0], f"cannot be run: {error}") from error
    held: list[int] = []
    try:
        try:
            namespace = await _taken_over(maker, held, rootless=rootless)
        finally:
            await _end(maker)
        yield namespace
    finally:
        for descriptor in held:
            os.close(descriptor)


async def _taken_over(maker: Process, held: list[int], *, rootless: bool) -> Namespace:
    assert maker.stdout is not None  # noqa: S101 - it was asked for
    assert maker.stderr is not None  # noqa: S101 - as above
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            if await maker.stdout.readline() != _READY:
                said = (await maker.stderr.read()).decode("utf-8", "backslashreplace")
                raise BusNetworkFailed("unshare", said.strip() or "it said nothing")
    except TimeoutError:
        raise BusNetworkFailed("unshare", "came to no end") from None
    try:
        held.append(_held(maker, "net"))
        if rootless:
            held.append(_held(maker, "user"))
    except OSError as error:
        raise BusNetworkFailed("unshare", f"its namespace cannot be held: {error}") from error
    return Namespace(held[0], held[1] if rootless else None)


def _held(maker: Process, kind: str) -> int:
    return os.open(f"/proc/{maker.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


async def _end(maker: Process) -> None:
    if maker.returncode is None:
        with suppress(ProcessLookupError):
            maker.kill()
        await maker.wait()
