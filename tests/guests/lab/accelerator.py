"""Whether KVM really runs a guest here; a device node alone proves nothing."""

import functools
import os
import subprocess

from tests.guests.lab.qemu import Qemu

__all__ = ["accelerator"]

TRIAL_SECONDS = 20.0
"""A firmware that finds nothing to boot gives up within one second, so a stuck one has failed."""


@functools.cache
def accelerator(qemu: Qemu) -> str:
    """This is ``kvm`` when a firmware ran to its end under it, else ``tcg``."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    # With nothing to boot the firmware resets the machine after a millisecond, and -no-reboot turns
    # that into an exit: proof that guest code ran.
    trial = qemu.command(
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
