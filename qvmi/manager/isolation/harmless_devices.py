"""The character devices that a machine may have open and reach nobody by; all others may lead anywhere.

References: Linux ``Documentation/admin-guide/devices.txt``.
"""

import os
import stat
from typing import Final

from qvmi.manager.isolation.facts import Descriptor

__all__ = ["is_harmless"]

_MEMORY, _TERMINAL, _MISCELLANEOUS = 1, 5, 10

_NUMBERS: Final = frozenset({
    *(os.makedev(_MEMORY, minor) for minor in (3, 5, 7, 8, 9)),  # null, zero, full, random, urandom
    *(os.makedev(_TERMINAL, minor) for minor in (0, 2)),  # tty, ptmx
    # rtc, hwrng, tun (which is judged by itself), tpm, hpet, kvm, vhost-net
    *(os.makedev(_MISCELLANEOUS, minor) for minor in (135, 183, 200, 224, 228, 232, 238)),
})  # fmt: skip
_MAJORS: Final = frozenset({13, 14, 29, 116, 226})
"""Input devices, both kinds of sound, frame buffers, graphics: this host's people are at their other ends."""

_NAMES: Final = frozenset({
    *("/dev/sev", "/dev/sgx_vepc", "/dev/udmabuf", "/dev/userfaultfd", "/dev/tpmrm0"),
})  # fmt: skip
"""Those whose numbers differ from host to host."""

_STANDARD: Final = 2
"""The last of the files that a program is started with: a terminal of its user's, perhaps."""
_PSEUDO_TERMINALS: Final = range(136, 144)
"""The majors of ``/dev/pts/*``."""


def is_harmless(descriptor: Descriptor) -> bool:
    """This tells whether an open file leads to nobody, or is judged elsewhere."""
    if not stat.S_ISCHR(descriptor.mode):
        return True
    major = os.major(descriptor.special)
    if major in _PSEUDO_TERMINALS:
        return descriptor.number <= _STANDARD
    return descriptor.special in _NUMBERS or major in _MAJORS or descriptor.target in _NAMES
