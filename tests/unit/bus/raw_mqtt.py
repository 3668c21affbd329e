"""An MQTT client that sends any bytes for a topic, as one does that wants to break out.

References: MQTT Version 5.0 (OASIS), 1.5 Data representation, 3.1 CONNECT, 3.2 CONNACK, 3.3 PUBLISH.
"""

import socket
from collections.abc import Iterable
from pathlib import Path

from qvmi.bus.account import Account

__all__ = ["NOT_AUTHORIZED", "RawClient", "greet_raw", "publish_raw"]

CLEAN_START, USER_AND_PASSWORD = 0x02, 0xC0
NOT_AUTHORIZED = 0x87
KEEPALIVE_S = 60
TIMEOUT_S = 5.0


def publish_raw(path: Path, account: Account, topic: bytes, data: bytes) -> bytes:
    """Connects, publishes at QoS 1, and gives what the broker answers; nothing if it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(_connect(account))
        greeting = connection.recv(1024)
        assert greeting[:1] == b"\x20", greeting
        assert greeting[3] == 0, greeting
        try:
            connection.sendall(_packet(0x32, _text(topic) + b"\x00\x01" + b"\x00" + data))
            return connection.recv(1024)
        except ConnectionError:
            return b""


def greet_raw(path: Path, account: Account | None) -> int:
    """Connects, with an account or without one, and gives the reason code of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(_connect(account))
        greeting = connection.recv(1024)
        assert greeting[:1] == b"\x20", greeting
        return greeting[3]


class RawClient:
    """A client that is let in, and publishes what it likes without waiting for an answer."""

    def __init__(self, path: Path, account: Account, *, client_id: bytes = b"raw") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(str(path))
        self._socket.sendall(_connect(account, client_id))
        greeting = self._socket.recv(1024)
        assert greeting[3] == 0, greeting

    def publish(self, topic: bytes, data: bytes) -> None:
        """Sends a publish of QoS 0; OSError once the broker has hung up or reads no more."""
        self._socket.sendall(_packet(0x30, _text(topic) + b"\x00" + data))

    def subscribe(self, filters: Iterable[bytes]) -> None:
        """Subscribes to all of them by one packet; OSError once the broker has hung up."""
        wanted = b"".join(_text(each) + b"\x00" for each in filters)
        self._socket.sendall(_packet(0x82, b"\x00\x01\x00" + wanted))

    def is_hung_up_on(self) -> bool:
        """Reads what has come, and tells whether the broker has ended the connection."""
        self._socket.settimeout(0)
        try:
            while self._socket.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()


def _connect(account: Account | None, client_id: bytes = b"raw") -> bytes:
    flags = CLEAN_START | (USER_AND_PASSWORD if account else 0)
    head = _text(b"MQTT") + bytes([5, flags]) + KEEPALIVE_S.to_bytes(2, "big") + b"\x00"
    names = [client_id]
    if account:
        names += [account.name.encode(), account.secret.encode()]
    return _packet(0x10, head + b"".join(map(_text, names)))


def _packet(header: int, body: bytes) -> bytes:
    length = bytearray()
    rest = len(body)
    while rest or not length:
        rest, digit = divmod(rest, 128)
        length.append(digit | (0x80 if rest else 0))
    return bytes([header]) + bytes(length) + body


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
