"""Whether a broker lets somebody in who gives no name: it is asked.

References: MQTT 3.1.1 (OASIS), sections 3.1 (CONNECT), 3.2 (CONNACK) and 3.14 (DISCONNECT).
"""

import os
import socket
from typing import Final

from qvmi.manager.isolation.facts import Unseen

__all__ = ["admits_anybody"]

_ANSWERS_S: Final = 10.0
"""How long a broker may take to answer: milliseconds, on a loaded host seconds."""
_CONNACK: Final = 0x20
_CONNACK_BYTES: Final = 4
_DISCONNECT: Final = b"\xe0\x00"


def admits_anybody(path: str, *, probe: str | None = None) -> bool | Unseen:
    """This connects to a broker's Unix socket without a user, leaves, and tells whether it was let in.

    Args:
        path: the socket.
        probe: the client's name, by which the broker's owner knows it; None for any.
    """
    client = (probe or f"qvmi-doctor-{os.urandom(4).hex()}").encode()
    # protocol name and level, a clean session without a user, no keep-alive, the client's id
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(client).to_bytes(2, "big") + client
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as broker:
            broker.settimeout(_ANSWERS_S)
            broker.connect(path)
            broker.sendall(bytes([0x10, len(body)]) + body)
            answer = _answer(broker)
            if len(answer) == _CONNACK_BYTES and answer[0] == _CONNACK:
                admitted = answer[3] == 0
                if admitted:
                    broker.sendall(_DISCONNECT)
                return admitted
    except OSError as error:
        return Unseen(f"{path}: {error.strerror or error}")
    return Unseen(f"{path}: no answer of MQTT's to somebody without a name: {answer!r}")


def _answer(broker: socket.socket) -> bytes:
    """This is the broker's CONNACK, or what there was of it before it hung up."""
    answer = b""
    while len(answer) < _CONNACK_BYTES and (more := broker.recv(_CONNACK_BYTES - len(answer))):
        answer += more
    return answer
