"""A program that listens, at one address, on TCP and UDP, and tells of whatever comes.

It is run by path, ``python -I -S canary.py ADDRESS PORT``: a line ``ready``, then a line for each connection
and each datagram. It ends when its input does.
"""

import select
import socket
import sys


def main(address: str, port: str) -> None:
    tcp = socket.create_server((address, int(port)))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, int(port)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([0, tcp.fileno(), udp.fileno()], [], [])
        if 0 in ready:
            return
        if tcp.fileno() in ready:
            connection, peer = tcp.accept()
            connection.close()
            sys.stdout.write(f"tcp {peer[0]}\n")
        if udp.fileno() in ready:
            data, peer = udp.recvfrom(2048)
            sys.stdout.write(f"udp {peer[0]} {data.decode('latin-1')}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
