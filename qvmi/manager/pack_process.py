"""One codepack's process as the manager has it: started, told what it needs, and read until it ends."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

import qvmi.bus.lifeline
from qvmi.errors import BadMessage, CodepackError
from qvmi.manager.orders import MAX_LINE, Caveats, Hello, Orders, read_line

__all__ = ["PackProcess", "Place", "start"]

HELLO_S: Final = 60.0
"""Longest wait for the first answer: Python starts in a tenth of a second, on a busy host in some."""

END_S: Final = 3.0
"""Longest wait for a process to end by itself when its input ends; then it is killed."""

_LAST_WORDS: Final = 4096
"""Bytes kept of what it writes to standard error."""

_LIFELINE: Final = Path(qvmi.bus.lifeline.__file__)
_PROGRAM: Final = "qvmi.manager.pack_program"
_PACKAGES: Final = Path(qvmi.bus.lifeline.__file__).parents[2]
"""Where this very qvmi is imported from."""


@dataclass(frozen=True, slots=True)
class Place:
    """This is where a process lives.

    Args:
        folder: its own.
        uid: who it is; None for who the manager is.
        gid: the group that may reach the broker's socket; None for the manager's own.
    """

    folder: Path
    uid: int | None = None
    gid: int | None = None


class PackProcess:
    """This is a process that has answered; :func:`start` makes it.

    Attributes:
        hello: its first answer.
        pid: its process id.
    """

    def __init__(self, process: Process, hello: Hello, words: "asyncio.Task[str]") -> None:
        self.hello = hello
        self.pid = process.pid
        self._process = process
        self._words = words

    async def ended(self) -> tuple[int, str]:
        """This waits for its end, and gives the exit code and its last words."""
        code = await self._process.wait()
        return code, await self._words

    def tell(self, caveats: Sequence[str]) -> None:
        """This tells it what must be said with each alert from now on."""
        line = msgspec.json.encode(Caveats(tuple(caveats))) + b"\n"
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line)

    def kill(self) -> None:
        """This kills it."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """This ends it, by force if it does not end when its input does."""
        await _end(self._process)
        self._words.cancel()
        await asyncio.wait({self._words})


async def start(orders: Orders, place: Place) -> PackProcess:
    """This starts a process, gives it its orders, and waits for its first answer.

    It ends with this process, however that ends.

    Raises:
        CodepackError: it cannot be started, or ended before it answered; says its last words.
    """
    try:
        process = await _spawned(orders.inherited, place)
    except OSError as error:
        raise CodepackError(orders.codepack, f"its process cannot be started: {error}") from error
    words = asyncio.create_task(_last_words(process.stderr), name="qvmi-pack-words")
    try:
        hello = await _greeted(process, orders)
    except BaseException as error:
        await _end(process, at_once=True)
        said = await words
        if isinstance(error, OSError | BadMessage | ValueError):  # TimeoutError is an OSError
            raise CodepackError(orders.codepack, f"its process does not start: {said}") from error
        raise
    return PackProcess(process, hello, words)


async def _spawned(descriptors: Sequence[int], place: Place) -> Process:
    # Nothing of what lies in its folder runs before it is confined: neither modules nor site-packages there.
    command = (sys.executable, "-P", "-s", "-m", _PROGRAM)
    identity: dict[str, int | list[int]] = {}
    if place.uid is not None and place.gid is not None:
        identity = {"user": place.uid, "group": place.gid, "extra_groups": []}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", _LIFELINE, str(os.getpid())),
        *command,
        cwd=place.folder,
        env=_environment(place.folder),
        pass_fds=tuple(descriptors),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=MAX_LINE,
        start_new_session=True,
        **identity,  # type: ignore[arg-type] # mypy takes each value for one of all arguments
    )


def _environment(folder: Path) -> Mapping[str, str]:
    """This is all that the process is told by its environment: nothing of the manager's own."""
    return {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(_PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


async def _greeted(process: Process, orders: Orders) -> Hello:
    if process.stdin is None or process.stdout is None:
        raise BadMessage("a process without pipes")
    process.stdin.write(msgspec.json.encode(orders) + b"\n")
    async with asyncio.timeout(HELLO_S):
        await process.stdin.drain()
        return read_line(await process.stdout.readline(), Hello)


async def _end(process: Process, *, at_once: bool = False) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if not at_once:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()


async def _last_words(stream: asyncio.StreamReader | None) -> str:
    """This reads to the end and gives the last of it as one line."""
    kept = b""
    while stream is not None and (data := await stream.read(_LAST_WORDS)):
        kept = (kept + data)[-_LAST_WORDS:]
    lines = kept.decode("utf-8", "backslashreplace").splitlines()
    return "; ".join(line.strip() for line in lines[-4:] if line.strip()) or "it said nothing"
