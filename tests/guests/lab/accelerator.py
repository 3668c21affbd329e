"""Whether KVM really runs a guest here; a device node alone proves nothing."""

import functools
import os
import subprocess

__all__ = ["accelerator", "qemu_version"]

TRIAL_SECONDS = 20.0
"""A firmware that finds nothing to boot gives up within one second, so a stuck one has failed."""


@functools.cache
def accelerator() -> str:
    """This is ``kvm`` when a firmware ran to its end under it, else ``tcg``."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    # With nothing to boot the firmware resets the machine after a millisecond, and -no-reboot turns
    # that into an exit: proof that guest code ran.
    trial = (
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "max", "-smp", "2", "-m", "64M"),
        *("-boot", "strict=on,reboot-timeout=1", "-no-reboot"),
    )
    try:
        ended = subprocess.run(
            trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return "tcg"
    return "tcg" if ended.returncode else "kvm"


@functools.cache
def qemu_version(program: str = "qemu-system-x86_64") -> str:
    """This is QEMU's own word for its version, distribution revision included; empty when it is not here."""
    try:
        said = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return said.splitlines()[0].rpartition("version ")[2]
