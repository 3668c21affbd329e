"""A program that QEMU starts for a connection of its guest: it carries bytes between that and a socket.

It is run by path, ``python -I -S relay.py SOCKET SEAT``, by QEMU's user network (``guestfwd=…-cmd:``) with
the connection as its input and output, so it imports nothing of qvmi.

References: qemu-system-x86_64(1), ``guestfwd``; flock(2).
"""

import fcntl
import os
import select
import socket
import sys

MAX_CONNECTIONS = 8
"""At a time, of one service VM: it needs one, and must not fill the host with processes."""

BLOCK = 1 << 16


def take_place(folder: str, seat: int) -> "int | None":
    """This locks one of the places of a service VM, which is free again when this program ends."""
    for number in range(MAX_CONNECTIONS):
        path = os.path.join(folder, f"relay-{seat}-{number}.lock")  # noqa: PTH118 - the start is waited for
        place = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(place)
        else:
            return place
    return None


def carry(stream: socket.socket) -> None:
    """This copies both ways until the socket ends; that the guest has no more to say is passed on."""
    sources = [0, stream.fileno()]
    while True:
        ready, _, _ = select.select(sources, (), ())
        if 0 in ready:
            if data := os.read(0, BLOCK):
                stream.sendall(data)
            else:
                stream.shutdown(socket.SHUT_WR)
                sources.remove(0)
        if stream.fileno() in ready:
            if not (data := stream.recv(BLOCK)):
                return
            _write_all(1, data)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def main(arguments: list[str]) -> None:
    """This connects to the socket and carries."""
    path, seat = arguments
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if take_place(os.path.dirname(path), int(seat)) is None:  # noqa: PTH120 - as above
            sys.exit("too many connections of one machine")
        stream.connect(path)
        carry(stream)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
