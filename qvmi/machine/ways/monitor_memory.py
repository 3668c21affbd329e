"""Guest memory by QEMU's monitor alone, while the guest runs: saved to a file, or printed as text.

References: QEMU ``qapi/machine.json`` (``pmemsave``), ``softmmu/cpus.c`` (``qmp_pmemsave``),
``hmp-commands.hx`` (``xp``), ``monitor/misc.c`` (``memory_dump``).
"""

import asyncio
import os
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qvmi.addr import Pa
from qvmi.errors import MemoryFault, QmpCommandFailed
from qvmi.qmp.monitor import Monitor

__all__ = ["PrintedMemory", "SavedMemory"]

_MAX_SAVED: Final = 1 << 20
"""Bytes saved at once: QEMU holds its lock for the 2 ms that this takes, and devices wait for that."""
_SAVED_BLOCK: Final = 1 << 16
"""Read at once of a guest that stands still: takes a fifth longer than 8 bytes do."""
_MAX_PRINTED: Final = 1 << 15
"""Bytes printed at once: 110 KB of text, for which QEMU holds its lock for some 3 ms."""
_PRINTED_BLOCK: Final = 1 << 12
_WORD: Final = re.compile(r"0x([0-9a-f]{16})\b")
_WORD_SIZE: Final = 8
_HOW_TO_SHARE_FOLDER: Final = (
    "it runs as another user, in a container, or on another host: run qvmi as QEMU's user or as"
    " root on its host"
)


class SavedMemory:
    """This is memory that QEMU saves to a file, chunk by chunk, where it may write to one of ours.

    The file is readable by its owner alone, in a folder that nobody else can enter. Only this
    process's own descriptor of it is read, and it is emptied after each read.

    Args:
        monitor: the conversation with QEMU.
        base: the folder in which a private one is made; a file system in memory is best.

    Raises:
        OSError: there can be none.
    """

    stops_guest = False
    block = _SAVED_BLOCK

    def __init__(self, monitor: Monitor, base: Path) -> None:
        self._monitor = monitor
        self._lock = asyncio.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="qvmi-ram-", dir=base))
        self._path = self._folder / "part"
        self._file = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
        except OSError:
            self.close()
            raise

    @staticmethod
    def bases() -> Iterator[Path]:
        """These are the folders that may do, those in memory first; each is there."""
        named = (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm", tempfile.gettempdir())  # noqa: S108 - a private folder is made there
        yield from (Path(name) for name in dict.fromkeys(named) if name and Path(name).is_dir())

    @property
    def folder(self) -> Path:
        """This is the private folder, which is to go with this process."""
        return self._folder

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read."""
        return f"QMP's pmemsave to {self._folder}"

    async def fetch(self, pa: Pa, size: int) -> bytes:
        """This asks for exactly so many bytes, all of them RAM.

        Raises:
            MemoryFault: QEMU cannot write to the file, or has not written that much.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        async with self._lock:
            parts = [
                await self._saved(at, min(_MAX_SAVED, pa + size - at))
                for at in range(pa, pa + size, _MAX_SAVED)
            ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def let_go(self) -> None:
        """This has nothing to end."""

    def close(self) -> None:
        """This removes the file and its folder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _saved(self, pa: int, size: int) -> bytes:
        where = {"val": pa, "size": size, "filename": str(self._path)}
        try:
            await self._monitor.execute("pmemsave", where)
        except QmpCommandFailed as error:
            why = f"QEMU cannot write to {self._path} ({error.description}): {_HOW_TO_SHARE_FOLDER}"
            raise MemoryFault(pa, size, why=why) from error
        try:
            # A command whose caller has gone is carried out before this one, which begins the file anew.
            data = os.pread(self._file, size + 1, 0)
            os.truncate(self._file, 0)
        except OSError as error:
            raise MemoryFault(pa, size, why=f"{self._path}: {error.strerror}") from error
        if len(data) != size:
            raise MemoryFault(
                pa,
                size,
                why=f"QEMU has written {len(data)} bytes to its own {self._path}:"
                f" {_HOW_TO_SHARE_FOLDER}",
            )
        return data


class PrintedMemory:
    """This is memory that QEMU's human monitor prints: slow, but to be had wherever QMP is.

    Args:
        monitor: the conversation with QEMU.
    """

    stops_guest = False
    block = _PRINTED_BLOCK
    description = "the monitor's xp"

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def fetch(self, pa: Pa, size: int) -> bytes:
        """This asks for exactly so many bytes, all of them RAM.

        Raises:
            MemoryFault: QEMU cannot read them.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        low = pa // _WORD_SIZE * _WORD_SIZE
        high = -(-(pa + size) // _WORD_SIZE) * _WORD_SIZE
        parts = [
            await self._printed(at, min(_MAX_PRINTED, high - at) // _WORD_SIZE)
            for at in range(low, high, _MAX_PRINTED)
        ]
        return b"".join(parts)[pa - low : pa - low + size]

    async def let_go(self) -> None:
        """This has nothing to end."""

    def close(self) -> None:
        """This has nothing to remove."""

    async def _printed(self, pa: int, count: int) -> bytes:
        size = count * _WORD_SIZE
        try:
            text = await self._monitor.hmp(f"xp /{count}gx {pa:#x}")
        except QmpCommandFailed as error:
            raise MemoryFault(pa, size, why=error.description) from error
        words = _WORD.findall(text)
        if len(words) != count:
            raise MemoryFault(pa, size, why=f"QEMU prints {' '.join(text[-100:].split())!r}")
        data = array("Q", bytes.fromhex("".join(words)))
        data.byteswap()
        return data.tobytes()
