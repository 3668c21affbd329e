"""Opens a tap in a network namespace, comes back, and becomes a QEMU that is handed the open tap.

``python -I -S tap_opener.py NAMESPACE INTERFACE QEMU ARGUMENT…``; ``TAP`` in an argument stands for
the descriptor. References: setns(2), Linux ``Documentation/networking/tuntap.rst``.
"""

import ctypes
import fcntl
import os
import struct
import sys

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000


def main() -> None:
    """This opens, returns and becomes QEMU."""
    namespace, interface, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(namespace, os.O_RDONLY)
    assert libc.setns(other, CLONE_NEWNET) == 0
    tap = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
    assert libc.setns(own, CLONE_NEWNET) == 0
    fcntl.fcntl(tap, fcntl.F_SETFD, 0)  # QEMU inherits it
    program, *arguments = [part.replace("fd=TAP", f"fd={tap}") for part in command]
    os.execvp(program, [program, *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
