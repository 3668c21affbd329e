"""What a rootkit in the guest would do, done from outside in the RAM file of a guest at rest."""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvmi.addr import Pa, PaRange, Va
from qvmi.arch.x86_64 import parse_registers
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import Choices, select
from qvmi.symbols.layout import field_offset
from qvmi.view import Provenance, Taken, View
from tests.guests.lab import Guest, LabError

__all__ = ["bypassed_process", "forgotten_process", "hide_process", "show_process"]

_LINKS = struct.Struct("<QQ")
_POINTER = struct.Struct("<Q")
_PIDTYPE_TGID = 1
_LOW_RAM_END = 2 << 30
"""Up to this size all RAM of a q35 or pc machine lies in one piece at physical address 0."""


def hide_process(guest: Guest, name: str) -> Process:
    """Take a process off the kernel's list of tasks, as ``list_del_init`` does; it runs on.

    The guest stands still meanwhile, so that it never sees half of it.

    Returns:
        The process as the list showed it before.
    """
    with _stopped(guest), _understood(guest) as linux:
        hidden = next((row for row in linux.processes() if row.name == name), None)
        if hidden is None:
            raise LabError(f"no process {name!r} is on the list of tasks", fix="name one of them")
        entry = Va(hidden.address + field_offset(linux.kernel.symbols, "task_struct", "tasks"))
        following, before = _LINKS.unpack(linux.kernel.space.read(entry, _LINKS.size))
        _write(guest, linux, Va(before), struct.pack("<Q", following))
        _write(guest, linux, Va(following + 8), struct.pack("<Q", before))
        _write(guest, linux, entry, _LINKS.pack(entry, entry))
        return hidden


def show_process(guest: Guest, hidden: Process) -> None:
    """Put a hidden process back at the end of the list of tasks."""
    with _stopped(guest), _understood(guest) as linux:
        tasks = field_offset(linux.kernel.symbols, "task_struct", "tasks")
        init_task = linux.kernel.symbols.find("init_task")
        if init_task is None:
            raise LabError("the kernel has no init_task", fix="take a Linux guest")
        head, entry = Va(init_task + tasks), Va(hidden.address + tasks)
        _, last = _LINKS.unpack(linux.kernel.space.read(head, _LINKS.size))
        _write(guest, linux, entry, _LINKS.pack(head, last))
        _write(guest, linux, Va(last), struct.pack("<Q", entry))
        _write(guest, linux, Va(head + 8), struct.pack("<Q", entry))


@contextmanager
def bypassed_process(guest: Guest, name: str) -> Iterator[Process]:
    """Lead the list of tasks past a process in one direction alone, for as long as the block lasts.

    The next one still points back to it, so that the list contradicts itself there, for good.
    """
    with _stopped(guest), _understood(guest) as linux:
        hidden = next((row for row in linux.processes() if row.name == name), None)
        if hidden is None:
            raise LabError(f"no process {name!r} is on the list of tasks", fix="name one of them")
        entry = Va(hidden.address + field_offset(linux.kernel.symbols, "task_struct", "tasks"))
        following, before = _LINKS.unpack(linux.kernel.space.read(entry, _LINKS.size))
        _write(guest, linux, Va(before), _POINTER.pack(following))
    try:
        yield hidden
    finally:
        with _stopped(guest), _understood(guest) as linux:
            _write(guest, linux, Va(before), _POINTER.pack(entry))


@contextmanager
def forgotten_process(guest: Guest, name: str) -> Iterator[Process]:
    """Take a process out of what its pid number leads to for as long as the block lasts.

    That is what /proc, and so ``ps``, asks: the list ``struct pid.tasks[PIDTYPE_TGID]``.
    """
    with _stopped(guest), _understood(guest) as linux:
        hidden = next((row for row in linux.process_ids() if row.name == name), None)
        if hidden is None:
            raise LabError(f"no process {name!r} has a pid", fix="name one of them")
        symbols = linux.kernel.symbols
        entry = hidden.address + field_offset(symbols, "task_struct", "signal")
        (signal,) = _POINTER.unpack(linux.kernel.space.read(Va(entry), _POINTER.size))
        pids = Va(signal + field_offset(symbols, "signal_struct", "pids"))
        (pid,) = _POINTER.unpack(
            linux.kernel.space.read(Va(pids + _PIDTYPE_TGID * _POINTER.size), _POINTER.size)
        )
        head = Va(pid + field_offset(symbols, "pid", "tasks") + _PIDTYPE_TGID * _POINTER.size)
        first = linux.kernel.space.read(head, _POINTER.size)
        _write(guest, linux, head, bytes(_POINTER.size))
    try:
        yield hidden
    finally:
        with _stopped(guest), _understood(guest) as linux:
            _write(guest, linux, head, first)


@contextmanager
def _stopped(guest: Guest) -> Iterator[None]:
    was_running = guest.monitor.running()
    guest.monitor.execute("stop")
    try:
        yield
    finally:
        if was_running:
            guest.monitor.execute("cont")


@contextmanager
def _understood(guest: Guest) -> Iterator[LinuxGuest]:
    """Look at the guest beside whoever is attached to it, through the lab's own monitor."""
    path = _ram_file(guest)
    ram = MappedRam([RamFile(PaRange(Pa(0), Pa(path.stat().st_size)), path, 0)])
    try:
        vcpus = parse_registers(guest.monitor.human("info registers -a"))
        view = View(vcpus, ram, Provenance(Taken.PAUSED, time.time()))
        yield select(view, Choices())
    finally:
        ram.close()


def _write(guest: Guest, linux: LinuxGuest, va: Va, data: bytes) -> None:
    with _ram_file(guest).open("r+b") as ram:
        ram.seek(linux.kernel.space.translate(va))
        ram.write(data)


def _ram_file(guest: Guest) -> Path:
    path, *others = guest.ram_paths
    if others or path.stat().st_size > _LOW_RAM_END:
        raise LabError("this guest's RAM is not one file of at most 2 GiB", fix="take ram='file'")
    return path
