"""A program of its own that makes sockets in another process's network namespace and hands them back.

It is run by path, ``python -I -S network_entrance.py CHANNEL PID FAMILY:TYPE:PROTOCOL…``, so it imports
nothing of qvmi. A socket stays in the namespace it was made in, whoever has it. Entering one needs root, or
to have made it: then its user namespace is entered first, which a program with threads may not do.

References: setns(2), user_namespaces(7), unix(7) (SCM_RIGHTS).
"""

import ctypes
import os
import socket
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def main(arguments: list[str]) -> None:
    """This enters, makes the sockets, sends them, and ends."""
    channel, pid, *wanted = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(network, CLONE_NEWNET) != 0:
        user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        for space, kind in ((user, CLONE_NEWUSER), (network, CLONE_NEWNET)):
            if libc.setns(space, kind) != 0:
                sys.exit(os.strerror(ctypes.get_errno()))
    made = [socket.socket(*(int(part) for part in each.split(":"))) for each in wanted]
    with socket.socket(fileno=int(channel)) as answer:
        socket.send_fds(answer, [b"."], [each.fileno() for each in made])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(str(error.strerror))
