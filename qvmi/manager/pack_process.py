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

from qvmi.errors import BadMessage, CodepackError
from qvmi.manager import warden
from qvmi.manager.orders import MAX_LINE, Caveats, Hello, Orders, read_line

__all__ = ["PackProcess", "Place", "start"]

HELLO_S: Final = 60.0
"""Longest wait for the first answer: Python starts in a tenth of a second, on a busy host in some."""

END_S: Final = 3.0
"""Longest wait for a process to end by itself when its input ends; then it is killed."""

KILL_S: Final = 60.0
"""Longest wait for its warden to kill it with all that it has started; on a busy host it takes some."""

LAST_WORDS_S: Final = 10.0
"""Longest wait for them once it has ended: nobody is left to say more, unless its warden was killed."""

_LAST_WORDS: Final = 4096
"""Bytes kept of what it writes to standard error, and of what it prints."""

_MOST_SHOWN: Final = 200
"""Letters of what it has printed that its end is told with."""

_WARDEN: Final = Path(warden.__file__)
_PROGRAM: Final = "qvmi.manager.pack_program"
_PACKAGES: Final = Path(warden.__file__).parents[2]
"""Where this very qvmi is imported from."""


@dataclass(frozen=True, slots=True)
class Place:
    """This is where a process lives.

    Args:
        folder: its own.
        uid: who it is; None for who the manager is.
        gid: the group that may reach the broker's socket; None for the manager's own.
        hidden: paths at which it finds nothing, where the kernel allows that.
    """

    folder: Path
    uid: int | None = None
    gid: int | None = None
    hidden: tuple[str, ...] = ()


class PackProcess:
    """This is a process that has answered; :func:`start` makes it.

    The manager's own child is its warden, which ends as it does, and leaves nothing of it behind.

    Attributes:
        hello: its first answer.
        pid: its process id.
    """

    def __init__(self, process: Process, hello: Hello, words: "Words") -> None:
        self.hello = hello
        self.pid = hello.pid
        self._process = process
        self._words = words
        self._printed = Words(process.stdout)

    @property
    def printed_bytes(self) -> int:
        """This is how much it has written to standard output, where nothing is read from it."""
        return self._printed.count

    async def ended(self) -> tuple[int, str]:
        """This waits for its end, and gives the exit code and its last words."""
        code = await self._process.wait()
        words = await self._words.last() or "it said nothing"
        if printed := await self._printed.last():
            words += (
                f"; it had printed {self.printed_bytes} bytes, at last: {printed[-_MOST_SHOWN:]}"
            )
        return code, words

    def tell(self, caveats: Sequence[str]) -> None:
        """This tells it what must be said with each alert from now on."""
        line = msgspec.json.encode(Caveats(tuple(caveats))) + b"\n"
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line)

    def kill(self) -> None:
        """This has it killed, with all that it has started."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def end(self) -> None:
        """This ends it, by force if it does not end when its input does."""
        await _end(self._process)
        await self._words.close()
        await self._printed.close()


class Words:
    """This reads whatever a process says, so that it never has to wait, and keeps the last of it.

    Attributes:
        count: how many bytes it was.
    """

    def __init__(self, stream: asyncio.StreamReader | None) -> None:
        self.count = 0
        self._kept = b""
        self._reading = asyncio.create_task(self._read(stream), name="qvmi-pack-words")

    async def last(self) -> str:
        """This waits for the end, and gives the last lines as one."""
        await asyncio.wait({self._reading}, timeout=LAST_WORDS_S)
        lines = self._kept.decode("utf-8", "backslashreplace").splitlines()
        return "; ".join(line.strip() for line in lines[-4:] if line.strip())

    async def close(self) -> None:
        """This reads no further."""
        self._reading.cancel()
        await asyncio.wait({self._reading})

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (data := await stream.read(_LAST_WORDS)):
            self.count += len(data)
            self._kept = (self._kept + data)[-_LAST_WORDS:]


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
    words = Words(process.stderr)
    try:
        hello = await _greeted(process, orders)
    except BaseException as error:
        await _end(process, at_once=True)
        said = await words.last() or "it said nothing"
        if isinstance(error, OSError | BadMessage | ValueError):  # TimeoutError is an OSError
            raise CodepackError(orders.codepack, f"its process does not start: {said}") from error
        raise
    return PackProcess(process, hello, words)


async def _spawned(descriptors: Sequence[int], place: Place) -> Process:
    # Nothing of what lies in its folder runs before it is confined: neither modules nor site-packages there.
    command = (sys.executable, "-P", "-s", "-m", _PROGRAM)
    ids = (str(-1 if one is None else one) for one in (place.uid, place.gid))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_WARDEN), str(os.getpid()), *ids),
        "\n".join(path for path in place.hidden if "\n" not in path),
        *command,
        cwd=place.folder,
        env=_environment(place.folder),
        pass_fds=tuple(descriptors),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=MAX_LINE,
        start_new_session=True,
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
    """This ends a process: by the end of its input, by its warden, and if that does not answer by force."""
    if process.stdin is not None:
        process.stdin.close()
    wait_s = (0.0 if at_once else END_S, KILL_S)
    for seconds, force in zip(wait_s, (process.terminate, process.kill), strict=True):
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            force()
    await process.wait()
