"""Whether KVM really runs a guest here; a device node alone proves nothing."""

import functools
import os
import subprocess
import time

from tests.guests.lab.qemu import Qemu

__all__ = ["accelerator"]

TRIAL_SECONDS = 20.0
"""A firmware that finds nothing to boot gives up within one second, so a stuck one has failed."""


SLOWER_THAN_EMULATION = 4
"""A KVM that takes that many times as long as TCG emulates instructions itself, and no kernel comes up in
it: seen where /dev/kvm is there and the processor's extensions are not, 17 times as long."""


@functools.cache
def accelerator(qemu: Qemu) -> str:
    """This is ``kvm`` when a firmware ran to its end under it, and not slower than emulated; else ``tcg``."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    emulated, virtual = _trial_seconds(qemu, "tcg"), _trial_seconds(qemu, "kvm")
    return "kvm" if virtual < SLOWER_THAN_EMULATION * emulated else "tcg"


def _trial_seconds(qemu: Qemu, accelerator: str) -> float:
    """Return how long a firmware took to its end; infinity when it did not come there."""
    # With nothing to boot the firmware resets the machine after a millisecond, and -no-reboot turns
    # that into an exit: proof that guest code ran.
    trial = qemu.command(
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", "-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", "64M"),
        *("-boot", "strict=on,reboot-timeout=1", "-no-reboot"),
    )
    start = time.monotonic()
    try:
        ended = subprocess.run(
            trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return float("inf")
    return float("inf") if ended.returncode else time.monotonic() - start
