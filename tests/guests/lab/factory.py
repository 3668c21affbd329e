"""Makes guests: by booting one, or by thawing one that was frozen when its population was complete."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.guests.lab import saved_state
from tests.guests.lab.accelerator import accelerator, qemu_version
from tests.guests.lab.cache import Cache, digest_of, forget, read_record, write_record
from tests.guests.lab.control import Control
from tests.guests.lab.errors import LabError
from tests.guests.lab.folders import make_folder
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import Initramfs, initramfs_for
from tests.guests.lab.kernels import Kernel, kernel_in_use
from tests.guests.lab.machine_config import GuestConfig, MachineFiles, qemu_arguments, ram_blocks
from tests.guests.lab.monitor import Monitor
from tests.guests.lab.process import QemuProcess

__all__ = ["Lab"]

BOOT_SECONDS = 240.0
"""TCG boots in 5 to 11 s on two idle cores; a loaded machine may be many times slower."""

START_SECONDS = 60.0
"""QEMU listens within a second; a loaded machine may be many times slower."""


def _silent(_message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Lab:
    """This makes guests from one cache.

    Attributes:
        say: called with each step that took time or fetched something, for people.
    """

    cache: Cache = field(default_factory=Cache.of_user)
    say: Callable[[str], None] = _silent

    @contextmanager
    def boot(
        self, config: GuestConfig, *, until: str = "ready", paused: bool = False
    ) -> Iterator[Guest]:
        """This boots a guest and ends it with the block.

        Args:
            config: which machine.
            until: ``ready`` waits for the whole population, ``started`` only for QEMU.
            paused: leave the vCPUs stopped before their first instruction (``-S``).

        Raises:
            LabError: a part is missing or the guest did not come up; the error says what to do.
        """
        with ExitStack() as stack:
            files = self._files(config, stack)
            arguments = (*qemu_arguments(config, files), *(("-S",) if paused else ()))
            guest = stack.enter_context(self._started(config, files, arguments))
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
        with ExitStack() as stack:
            files = self._files(config, stack)
            saved = stack.enter_context(self._frozen(config, files))
            saved_state.copy_in(config, saved, files.folder)
            arguments = (*qemu_arguments(config, files), "-incoming", "defer")
            guest = stack.enter_context(self._started(config, files, arguments))
            saved_state.load_state(guest.monitor, config, saved)
            if not paused:
                guest.monitor.execute("cont")
            yield guest

    def _files(self, config: GuestConfig, stack: ExitStack) -> MachineFiles:
        """Provide kernel and initramfs, kept from replacement while the stack is open."""
        kernel: Kernel | None = None
        root: Initramfs | None = None
        if not qemu_version():
            raise LabError(
                "qemu-system-x86_64 is not on this machine", fix="apt-get install qemu-system-x86"
            )
        if config.kernel is not None:
            kernel = stack.enter_context(kernel_in_use(config.kernel, self.cache, self.say))
            root = initramfs_for(kernel, self.cache, self.say)
        size = sum(block.size for block in ram_blocks(config) if block.file_name)
        return MachineFiles(
            folder=make_folder(size),
            kernel=kernel.image if kernel else None,
            initramfs=root.path if root else None,
            accelerator=accelerator(),
        )

    @contextmanager
    def _started(
        self, config: GuestConfig, files: MachineFiles, arguments: tuple[str, ...]
    ) -> Iterator[Guest]:
        start = time.monotonic()
        process = QemuProcess.start(arguments, files.folder)
        deadline = start + START_SECONDS
        with ExitStack() as undo:
            undo.callback(process.end)
            try:
                control = Control.connect(files.folder / "control.sock", deadline=deadline)
                monitor = Monitor.connect(files.folder / "monitor.sock", deadline=deadline)
            except LabError as error:
                raise LabError(f"QEMU did not start:\n{process.log()}", fix=error.fix) from error
            undo.pop_all()
        with Guest(config, process, files.accelerator, monitor, control) as guest:
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

    @contextmanager
    def _frozen(self, config: GuestConfig, files: MachineFiles) -> Iterator[Path]:
        """Hold a frozen guest of this configuration, made now if there is none."""
        if config.kernel is None or files.initramfs is None:
            raise LabError("firmware alone has no population to freeze", fix="boot it")
        slot = digest_of(repr(config), files.accelerator)
        arguments = qemu_arguments(config, self._nameless(files))
        wanted = digest_of(*arguments, files.initramfs.name, qemu_version())
        with self.cache.locked(f"state-{slot}"):
            folder = self.cache.folder("states", slot)
            if read_record(folder).get("digest") != wanted:
                forget(folder)
                self._freeze(config, self.cache.folder("states", slot))
                write_record(folder, {"digest": wanted, "config": config.name})
        with self.cache.locked(f"state-{slot}", shared=True):
            yield folder

    @staticmethod
    def _nameless(files: MachineFiles) -> MachineFiles:
        """Take the one part out of the command line that differs from guest to guest."""
        return MachineFiles(Path("FOLDER"), files.kernel, files.initramfs, files.accelerator)

    def _freeze(self, config: GuestConfig, target: Path) -> None:
        with self.boot(config) as guest:
            start = time.monotonic()
            saved_state.save_state(guest.monitor, config, guest.folder, target)
            took = time.monotonic() - start
            self.say(
                f"guest {config.name}: booted in {guest.timings['boot']:.1f} s, "
                f"saved in {took:.2f} s ({guest.accelerator})"
            )
