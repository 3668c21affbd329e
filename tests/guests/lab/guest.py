"""A running guest as a test holds it: where to attach, and the lab's own ways to ask what is true."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guests.lab.control import Control, Row
from tests.guests.lab.errors import LabError
from tests.guests.lab.machine_config import GuestConfig, ram_blocks
from tests.guests.lab.monitor import Monitor
from tests.guests.lab.proc_files import Descriptor, KmsgRecord
from tests.guests.lab.process import QemuProcess
from tests.guests.lab.truth import Kallsyms, Storm, Truth

__all__ = ["Guest"]

ASK_SECONDS = 60.0
"""The longest answer (kallsyms under emulation on a loaded machine) takes a few seconds."""

SETTLE_TRIES = 20
"""Kernel workers come and go; two answers with the same tasks are seen within a few tries."""


@dataclass(slots=True)
class Guest:
    """This is one machine of a test's own. It ends with its ``with`` block, or with the test's process.

    Attributes:
        config: what was asked for.
        accelerator: ``kvm`` or ``tcg``.
        monitor: the lab's own QMP connection; the guest's first monitor stays free for the subject.
        timings: seconds that starting took, by step.
    """

    config: GuestConfig
    process: QemuProcess
    accelerator: str
    monitor: Monitor
    control: Control
    timings: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """This kills QEMU and removes its folder; a second time it does nothing."""
        self.control.close()
        self.monitor.close()
        self.process.end()

    @property
    def folder(self) -> Path:
        """This is the guest's private folder, gone when the guest is."""
        return self.process.folder

    @property
    def pid(self) -> int:
        """This is QEMU's process id."""
        return self.process.pid

    @property
    def qmp(self) -> str:
        """This is the address of the monitor that is the subject's: a path, or HOST:PORT."""
        if not self.config.tcp:
            return str(self.folder / "qmp.sock")
        rows = self.monitor.execute("query-chardev")
        (name,) = (row["filename"] for row in rows if row["label"] == "qmp")
        address: str = name.removeprefix("disconnected:").removeprefix("tcp:").partition(",")[0]
        return address.partition(" ")[0]

    @property
    def gdb_socket(self) -> Path:
        """This is the gdbstub's socket, where the configuration asked for one."""
        return self.folder / "gdb.sock"

    @property
    def ram_paths(self) -> tuple[Path, ...]:
        """These are the files guest memory lives in, in guest-physical order; none for private memory."""
        names = (block.file_name for block in ram_blocks(self.config))
        return tuple(self.folder / name for name in names if name)

    def console(self) -> bytes:
        """This is everything the guest wrote to its first serial port since it booted."""
        return (self.folder / "console.log").read_bytes()

    def ask(self, words: str, *, seconds: float = ASK_SECONDS) -> list[Row]:
        """This puts a request to the guest's init (see `COMMANDS` in init.c) and is its answer.

        Raises:
            GuestRefused: the init said no.
            LabError: no answer came in time.
        """
        return self.control.ask(words, seconds=seconds)

    def run(self, command: str) -> bytes:
        """This runs a shell command in the guest and is what it printed on either stream."""
        rows = self.ask(f"run {command}")
        return b"".join(r["text"].encode("latin-1") for r in rows if r["kind"] == "output")

    def truth(self) -> Truth:
        """This is what the guest says of itself now."""
        return Truth.of_rows(self.ask("truth"))

    def settled_truth(self) -> Truth:
        """This is the second of two answers in a row with exactly the same tasks.

        Raises:
            LabError: tasks kept coming and going.
        """
        before = self.truth()
        for _ in range(SETTLE_TRIES):
            after = self.truth()
            if [t.identity for t in before.tasks] == [t.identity for t in after.tasks]:
                return after
            before = after
        raise LabError("the guest's tasks do not settle", fix="stop the storm first")

    def kallsyms(self) -> Kallsyms:
        """This sums up the guest's /proc/kallsyms as it is now."""
        return Kallsyms.of_rows(self.ask("kallsyms"))

    def proc(self, name: str) -> dict[int, str]:
        """This is one file of /proc/PID of every process, such as ``maps``, by pid."""
        return {row["pid"]: row["text"] for row in self.ask(f"proc {name}")}

    def files(self) -> dict[tuple[int, int], Descriptor]:
        """These are the descriptors of all processes, by pid and number."""
        found = (row for row in self.ask("files") if row["info"])  # else closed meanwhile
        return {(row["pid"], row["fd"]): Descriptor.of_row(row) for row in found}

    def log(self) -> tuple[KmsgRecord, ...]:
        """These are the records that /dev/kmsg gives."""
        return tuple(KmsgRecord.of_text(row["text"]) for row in self.ask("log"))

    def start_churn(self) -> int:
        """This starts a process that changes mappings, files and mounts for ever; it is its pid."""
        (row,) = self.ask("churn start")
        pid: int = row["pid"]
        return pid

    def stop_churn(self) -> None:
        """This ends it."""
        self.ask("churn stop")

    def start_storm(self, width: int = 16) -> None:
        """This lets a known process fork for ever, `width` children alive at a time."""
        self.ask(f"storm start {width}")

    def stop_storm(self) -> Storm:
        """This ends the storm and accounts for every task of it."""
        return Storm.of_rows(self.ask("storm stop"))

    def start_spinning(self, count: int | None = None) -> None:
        """This keeps vCPUs in user mode: that many processes, else one for each vCPU."""
        self.ask(f"spin start {count or self.config.cpus}")

    def stop_spinning(self) -> None:
        """This ends all spinning processes."""
        self.ask("spin stop")

    def wait_for_end(self, seconds: float = ASK_SECONDS) -> bool:
        """Tell whether QEMU ended by itself within that time."""
        return self.process.wait_for_end(seconds)

    def kill(self) -> None:
        """This kills QEMU as an owner would who has had enough; `close` is still due."""
        os.kill(self.pid, 9)
        if not self.wait_for_end():
            raise LabError(f"QEMU {self.pid} survived SIGKILL", fix="look at /proc/PID/stack")

    def wait_for_console(self, text: bytes, *, seconds: float = ASK_SECONDS) -> bytes:
        """This returns the console as soon as it contains a text.

        Raises:
            LabError: it did not in that time.
        """
        deadline = time.monotonic() + seconds
        while text not in (console := self.console()):
            if time.monotonic() > deadline or self.wait_for_end(0.01):
                raise LabError(
                    f"the console never said {text!r}", fix=console[-2000:].decode("latin-1")
                )
        return console
