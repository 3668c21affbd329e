"""Which QEMU a guest runs on: the one on PATH, or a newer one out of the archive that is never installed.

A newer one is unpacked with every library it needs, and started by its own dynamic loader: that takes no
privileges, and works beside an older C library. ``/proc/PID/exe`` is the loader then.

References: ld.so(8); qemu-system-x86_64(1), ``-L``.
"""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DISTRIBUTION", "QEMU_VARIABLE", "Qemu", "chosen_name"]

QEMU_VARIABLE = "QVMI_TEST_QEMU"
"""Names the QEMU that guests run on unless told otherwise: `DISTRIBUTION`, or a suite of `NEWER_QEMUS`."""

DISTRIBUTION = "distribution"
ANSWERS_SECONDS = 60.0

LOADER = Path("usr/lib64/ld-linux-x86-64.so.2")
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
PROGRAMS = Path("usr/bin")
DATA = (Path("usr/share/qemu"), Path("usr/share/seabios"), Path("usr/lib/ipxe/qemu"))
"""Firmware and option ROMs, which QEMU would else take from where the machine's own QEMU has them."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """This is a QEMU that guests can run on.

    Attributes:
        name: `DISTRIBUTION`, or the suite it comes from.
        root: what its packages were unpacked to; None for the one on PATH.
        within: a program that runs it, as ``nsenter`` with the namespace that it is to live in.
    """

    name: str = DISTRIBUTION
    root: Path | None = None
    within: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        """This is the command line that runs one of its programs, as ``qemu-system-x86_64``."""
        if self.root is None:
            return (*self.within, program, *arguments)
        data = (word for folder in DATA for word in ("-L", str(self.root / folder)))
        # Without its cache the loader finds no library of the machine's own.
        loader = (str(self.root / LOADER), "--inhibit-cache")
        libraries = ("--library-path", str(self.root / LIBRARIES))
        return (
            *self.within,
            *loader,
            *libraries,
            str(self.root / PROGRAMS / program),
            *data,
            *arguments,
        )

    def version(self, program: str = "qemu-system-x86_64") -> str:
        """This is its own word for its version, package included; empty when it is not here."""
        return _version(self.command(program, "--version"))


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWERS_SECONDS, check=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return said.splitlines()[0].rpartition("version ")[2]


def chosen_name() -> str:
    """This is what `QEMU_VARIABLE` says, and `DISTRIBUTION` where it says nothing."""
    return os.environ.get(QEMU_VARIABLE) or DISTRIBUTION
