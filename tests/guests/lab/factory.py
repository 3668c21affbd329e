"""Makes guests: by booting one, or by thawing one that was frozen when its population was complete."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from tests.guests.lab import saved_state
from tests.guests.lab.accelerator import accelerator
from tests.guests.lab.cache import Cache, digest_of
from tests.guests.lab.control import Control
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.folders import make_folder
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import initramfs_for
from tests.guests.lab.kernels import newest_kernel
from tests.guests.lab.machine_config import (
    VIRT,
    GuestConfig,
    MachineFiles,
    qemu_arguments,
    ram_blocks,
)
from tests.guests.lab.monitor import Monitor
from tests.guests.lab.newer_qemu import chosen_qemu
from tests.guests.lab.process import QemuProcess
from tests.guests.lab.qemu import DISTRIBUTION, Qemu

__all__ = ["Lab"]

BOOT_SECONDS = 240.0
"""TCG boots in 5 to 11 s on two idle cores; a loaded machine may be many times slower."""

QEMU_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}

START_SECONDS = 60.0
"""QEMU listens within a second; a loaded machine may be many times slower."""


def _silent(_message: str) -> None:
    """Say nothing."""


def _leave_empty(_folder: Path) -> None:
    """Put nothing into the folder of a guest that boots."""


@dataclass(frozen=True, slots=True)
class Lab:
    """This makes guests from one cache.

    Attributes:
        say: called with each step that took time or fetched something, for people.
        qemu: what the guests run on.
    """

    cache: Cache = field(default_factory=Cache.of_user)
    say: Callable[[str], None] = _silent
    qemu: Qemu = field(default_factory=chosen_qemu)

    @contextmanager
    def boot(
        self,
        config: GuestConfig,
        *,
        until: Literal["ready", "started"] = "ready",
        paused: bool = False,
    ) -> Iterator[Guest]:
        """This boots a guest and ends it with the block.

        Args:
            config: which machine.
            until: ``ready`` waits for the whole population, ``started`` only for QEMU.
            paused: leave the vCPUs stopped before their first instruction (``-S``).

        Raises:
            LabError: a part is missing or the guest did not come up; the error says what to do.
        """
        more = ("-S",) if paused else ()
        with self._started(config, self._files(config), more) as guest:
            if until == "ready" and config.kernel is not None and not paused:
                self._wait_until_ready(guest)
            yield guest

    @contextmanager
    def restore(self, config: GuestConfig, *, paused: bool = False) -> Iterator[Guest]:
        """This thaws a guest, booting and freezing one first if there is none, and ends it with the block.

        Args:
            config: which machine; it needs a kernel.
            paused: leave the guest stopped where it was frozen.

        Raises:
            LabError: as `boot`.
        """
        files = self._files(config)
        saved = self._frozen(config, files)
        prepare = partial(saved_state.copy_in, config, saved)
        with self._started(config, files, ("-incoming", "defer"), prepare=prepare) as guest:
            saved_state.load_state(guest.monitor, config, saved)
            if not paused:
                guest.monitor.execute("cont")
            yield guest

    def provide(self, series: str) -> str:
        """This makes kernel and initramfs of a series ready, and says which version they are."""
        kernel = newest_kernel(series, self.cache, self.say)
        root = initramfs_for(kernel, self.cache, self.say)
        return f"{kernel.package} {kernel.version}, initramfs {root.digest}"

    def _files(self, config: GuestConfig) -> MachineFiles:
        if not self.qemu.version(config.qemu):
            raise MissingPartError(
                f"{config.qemu} is not on this machine",
                fix=f"apt-get install {QEMU_PACKAGES[config.qemu]}",
            )
        # Another processor's machine is always emulated.
        how = accelerator(self.qemu) if config.machine != VIRT else "tcg"
        if config.kernel is None:
            return MachineFiles(None, None, how)
        kernel = newest_kernel(config.kernel, self.cache, self.say)
        root = initramfs_for(kernel, self.cache, self.say)
        return MachineFiles(kernel.image, root.path, how)

    @contextmanager
    def _started(
        self,
        config: GuestConfig,
        files: MachineFiles,
        more: tuple[str, ...],
        *,
        prepare: Callable[[Path], None] = _leave_empty,
    ) -> Iterator[Guest]:
        start = time.monotonic()
        folder = make_folder(sum(block.size for block in ram_blocks(config) if block.file_name))
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            prepare(folder)
            arguments = (*qemu_arguments(config, files, folder), *more)
            process = QemuProcess.start(self.qemu.command(*arguments), folder)
            undo.callback(process.end)
            deadline = time.monotonic() + START_SECONDS
            try:
                control = undo.enter_context(process.connect("control.sock", deadline=deadline))
                stream = undo.enter_context(process.connect("monitor.sock", deadline=deadline))
                monitor = Monitor.over(stream)
            except LabError as error:
                raise LabError(f"QEMU did not start: {error.problem}\n{process.log()}") from error
            guest = Guest(config, process, files.accelerator, monitor, Control(control))
            undo.pop_all()
        with guest:
            guest.timings["start"] = time.monotonic() - start
            yield guest

    def _wait_until_ready(self, guest: Guest) -> None:
        start = time.monotonic()
        try:
            guest.control.wait_until_ready(deadline=start + BOOT_SECONDS)
        except LabError as error:
            said = guest.console()[-3000:].decode("latin-1")
            raise LabError(
                f"{guest.config.name} did not come up: {error.problem}\n{guest.process.log()}\n{said}",
                fix="read the console above",
            ) from error
        guest.timings["boot"] = time.monotonic() - start

    def _frozen(self, config: GuestConfig, files: MachineFiles) -> Path:
        """Return the folder of a frozen guest of this configuration, made now if there is none."""
        if config.kernel is None:
            raise LabError("firmware alone has no population to freeze", fix="boot it")
        another = () if self.qemu.name == DISTRIBUTION else (self.qemu.name,)
        name = digest_of(repr(config), files.accelerator, *another)
        arguments = qemu_arguments(config, files, Path("FOLDER"))
        digest = digest_of(*arguments, self.qemu.version(config.qemu))
        return self.cache.build("states", name, digest, partial(self._freeze, config, files))

    def _freeze(self, config: GuestConfig, files: MachineFiles, folder: Path) -> dict[str, str]:
        with self._started(config, files, ()) as guest:
            self._wait_until_ready(guest)
            start = time.monotonic()
            saved_state.save_state(guest.monitor, config, guest.folder, folder)
            took = time.monotonic() - start
        times = f"booted in {guest.timings['boot']:.1f} s, saved in {took:.2f} s"
        self.say(f"guest {config.name}: {times} ({guest.accelerator})")
        return {"config": config.name, "qemu": self.qemu.version(config.qemu), "times": times}
