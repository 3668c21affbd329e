"""Guests frozen when their population was complete: booted once, thawed for each test.

References: docs/devel/migration.rst in QEMU's source ("x-ignore-shared"). RAM in a shared file is copied
beside the device state, holes kept; RAM that QEMU holds privately travels in the state itself.
"""

import os
import shlex
import time
from pathlib import Path

from tests.guests.lab.errors import LabError
from tests.guests.lab.machine_config import GuestConfig, ram_blocks
from tests.guests.lab.monitor import Monitor

__all__ = ["STATE_FILES", "copy_sparse", "load_state", "save_state"]

STATE_FILES = ("state", "console.log")
MIGRATION_SECONDS = 120.0
POLL_SECONDS = 0.005
COPY_BLOCK = 16 << 20


def _shared_file_names(config: GuestConfig) -> tuple[str, ...]:
    return tuple(block.file_name for block in ram_blocks(config) if block.file_name)


def save_state(monitor: Monitor, config: GuestConfig, source: Path, target: Path) -> None:
    """This stops a guest for good and writes all of it to a folder."""
    monitor.execute("stop")
    _ignore_shared(monitor, config)
    monitor.execute("migrate", uri=f"exec:cat > {shlex.quote(str(target / 'state'))}")
    _wait(monitor, "query-migrate", done="completed")
    for name in (*_shared_file_names(config), "console.log"):
        copy_sparse(source / name, target / name)


def copy_in(config: GuestConfig, saved: Path, folder: Path) -> None:
    """This lays out a saved guest's memory and console in the folder of a new one."""
    for name in (*_shared_file_names(config), "console.log"):
        copy_sparse(saved / name, folder / name)


def load_state(monitor: Monitor, config: GuestConfig, saved: Path) -> None:
    """This thaws a guest in a QEMU that was started with ``-incoming defer``; it stays paused."""
    _ignore_shared(monitor, config)
    monitor.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(saved / 'state'))}")
    _wait(monitor, "query-migrate", done="completed")


def _ignore_shared(monitor: Monitor, config: GuestConfig) -> None:
    if _shared_file_names(config):
        capability = {"capability": "x-ignore-shared", "state": True}
        monitor.execute("migrate-set-capabilities", capabilities=[capability])
    else:
        monitor.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})


def _wait(monitor: Monitor, question: str, *, done: str) -> None:
    deadline = time.monotonic() + MIGRATION_SECONDS
    while (status := monitor.execute(question).get("status")) != done:
        if status == "failed" or time.monotonic() > deadline:
            raise LabError(
                f"QEMU could not move the guest's state: {status}",
                fix="remove the folder 'states' from the guest cache, so that the guest boots anew",
            )
        time.sleep(POLL_SECONDS)  # QEMU tells of no progress unasked; the deadline bounds it


def copy_sparse(source: Path, target: Path) -> None:
    """This copies a file's data and leaves its holes holes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            writer.seek(at)
            while at < end:
                sent = os.sendfile(writer.fileno(), reader.fileno(), at, min(end - at, COPY_BLOCK))
                at += sent
