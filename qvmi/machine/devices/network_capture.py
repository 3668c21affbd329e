"""What a virtual network card sends and receives, written by QEMU's own ``filter-dump`` while the guest runs.

QEMU writes two files in a private folder of ours, for what the guest sends and what it is sent, so that a
forged address misleads nobody about the direction. Both filters are removed at the end. Should this process
be killed, its guardian removes them; should that be killed too, the next capture does, which knows them by
their names: those tell whose they were.

References: QEMU ``net/dump.c``, ``net/filter.c``, ``qapi/qom.json`` (``FilterDumpProperties``).
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from qvmi.errors import QmpCommandFailed, QmpProtocolError, UsageError
from qvmi.machine.completion import to_the_end
from qvmi.machine.control import Control
from qvmi.machine.ways.monitor_memory import SavedMemory
from qvmi.network.pcap import PcapStream
from qvmi.policy import Grant
from qvmi.qmp.devices import netdevs
from qvmi.qmp.monitor import Monitor

__all__ = ["Captured", "NetworkCapture", "capturing"]

_audit: Final = logging.getLogger("qvmi.audit")

_PREFIX: Final = "qvmi-dump"
_FOLDER: Final = "qvmi-flows-"
_NAME: Final = re.compile(rf"{_PREFIX}-(\d+)-(\d+)-(\d+)-(?:rx|tx)")
_QUEUES: Final = {"rx": True, "tx": False}
"""QEMU's names for the queues of what is behind the card: it receives what the guest sends."""
_MAX_PACKET: Final = 1600
"""Bytes of each packet that are written: all of one that has no more than Ethernet usually takes."""
_MAX_FILE: Final = 128 << 20
"""Bytes of each file: it lies in memory where it can. What comes after that is not captured."""
_CHUNK: Final = 1 << 20
_START_TIME: Final = 19
"""Of the fields behind the name in /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class Captured:
    """This is one frame.

    Args:
        sent: whether the guest has sent it.
        frame: what was written of it.
        size: bytes that it had.
    """

    sent: bool
    frame: bytes
    size: int


class NetworkCapture:
    """This reads what QEMU writes; :func:`capturing` makes it.

    Attributes:
        is_full: whether there was more than is captured.
    """

    def __init__(self, files: dict[str, int]) -> None:
        self._files = files
        self._streams = {queue: PcapStream() for queue in files}
        self._read = dict.fromkeys(files, 0)
        self.is_full = False

    def drain(self) -> Iterator[Captured]:
        """These are the frames that were written since the last time.

        Raises:
            CorruptCapture: what was written is no capture.
        """
        for queue, descriptor in self._files.items():
            while self._read[queue] < _MAX_FILE:
                data = os.pread(descriptor, _CHUNK, self._read[queue])
                if not data:
                    break
                self._read[queue] += len(data)
                for frame, size in self._streams[queue].feed(data):
                    yield Captured(_QUEUES[queue], frame, size)
        self.is_full = any(read >= _MAX_FILE for read in self._read.values())


@asynccontextmanager
async def capturing(control: Control, netdev: str | None) -> AsyncIterator[NetworkCapture]:
    """This has QEMU capture what passes a network card, while the block lasts.

    Args:
        control: the hold on the machine.
        netdev: id of what is behind the card; None for the only one.

    Raises:
        PolicyDenied: the session has not the grant ``network-capture``.
        UsageError: there is no such netdev, or QEMU cannot capture there, or not into a folder of ours, or
            this host has no room for one.
        PauseError: the guardian that is to clean up cannot be started.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    control.require(Grant.NETWORK_CAPTURE, "capture what passes a network card")
    monitor = control.monitor
    chosen = _chosen(await netdevs(monitor), netdev)
    await _sweep(monitor)
    async with AsyncExitStack() as stack:
        folder = _new_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        guardian: Any = await control.run_control.prepare()
        guardian.keep(folder)
        stack.callback(guardian.forget, folder)
        _audit.info("capture what passes the netdev %s", chosen)
        files: dict[str, int] = {}
        for queue in _QUEUES:
            path = folder / f"{queue}.pcap"
            files[queue] = _new_file(path)
            stack.callback(os.close, files[queue])
            name = f"{_PREFIX}-{_whose(os.getpid())}-{queue}"
            guardian.note_added(name)
            stack.push_async_callback(to_the_end, _remove(monitor, name, guardian))
            await _add(monitor, name, chosen, queue, path)
        yield NetworkCapture(files)


def _chosen(found: tuple[str, ...], wanted: str | None) -> str:
    if not found:
        raise UsageError("this machine has no netdev that could be captured at")
    choices = ", ".join(found)
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted is None:
        raise UsageError(f"which netdev? This machine has {choices}")
    if wanted not in found:
        raise UsageError(f"there is no netdev {wanted!r}; there are: {choices}")
    return wanted


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_FOLDER, dir=next(SavedMemory.bases(), None)))
    except OSError as error:
        raise UsageError(f"there is no folder for a capture: {error}") from error


def _new_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}") from error


async def _add(monitor: Monitor, name: str, netdev: str, queue: str, path: Path) -> None:
    properties = {
        "qom-type": "filter-dump",
        "id": name,
        "netdev": netdev,
        "queue": queue,
        "file": str(path),
        "maxlen": _MAX_PACKET,
    }
    try:
        await monitor.execute("object-add", properties)
    except QmpCommandFailed as error:
        raise UsageError(
            f"QEMU cannot capture at the netdev {netdev} into {path.parent}: {error}; it needs a"
            " folder of ours that it may write to, and no vhost"
        ) from error


async def _remove(monitor: Monitor, name: str, guardian: Any) -> None:  # noqa: ANN401 - as it is handed out
    """This removes a filter, if it was added; the guardian does it where QEMU does not answer."""
    with suppress(QmpCommandFailed):  # it was never added
        await monitor.execute("object-del", {"id": name})
    guardian.note_removed(name)


async def _sweep(monitor: Monitor) -> None:
    """This removes the filters of captures whose process, and its guardian, were killed."""
    try:
        objects = msgspec.convert(
            await monitor.execute("qom-list", {"path": "/objects"}), list[dict[str, Any]]
        )
    except msgspec.ValidationError as error:
        raise QmpProtocolError("qom-list", str(error)) from error
    for name in (str(one.get("name", "")) for one in objects):
        match = _NAME.fullmatch(name)
        if match is None or match[1] != _namespace() or _lives(int(match[2]), match[3]):
            continue
        with suppress(QmpCommandFailed):
            path = await monitor.execute(
                "qom-get", {"path": f"/objects/{name}", "property": "file"}
            )
            await monitor.execute("object-del", {"id": name})
            folder = Path(str(path)).parent
            if folder.name.startswith(_FOLDER):
                shutil.rmtree(folder, ignore_errors=True)
        _audit.info("removed the capture %s, which a killed process has left", name)


def _whose(pid: int) -> str:
    """This tells a process from all others of this host, also from one that has its number later."""
    return f"{_namespace()}-{pid}-{_started(pid)}"


def _namespace() -> str:
    """This is the number of our pid namespace: of another one's processes nobody here can tell."""
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _lives(pid: int, started: str) -> bool:
    return _started(pid) == started


def _started(pid: int) -> str:
    """This is when a process was started; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[_START_TIME]
    except (OSError, IndexError):
        return ""
