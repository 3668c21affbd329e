"""The files that mosquitto reads at its start, made from the accounts.

References: mosquitto.conf(5); mosquitto_passwd(1), whose ``$7$`` lines are PBKDF2 with SHA-512.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

from qvmi.bus.account import Account
from qvmi.bus.message import MAX_MESSAGE_BYTES
from qvmi.bus.place import HERE, Place
from qvmi.bus.subscription import MAX_WAITING_MESSAGES
from qvmi.bus.tls_listener import TlsListener

__all__ = [
    "ACCESS_FILE",
    "CERTIFICATE_FILE",
    "CONFIG_FILE",
    "KEY_FILE",
    "OWN_SOCKET",
    "PASSWORD_FILE",
    "SOCKET",
    "account_files",
    "files",
]

CONFIG_FILE: Final = "mosquitto.conf"
PASSWORD_FILE: Final = "passwords"  # noqa: S105 - a file's name
ACCESS_FILE: Final = "access"
SOCKET: Final = "mqtt.sock"
OWN_SOCKET: Final = f"own/{SOCKET}"
"""Where the broker's owner alone connects: the other socket may be lent to strangers, who can use it up."""

CERTIFICATE_FILE: Final = "certificate.pem"
KEY_FILE: Final = "key.pem"

_HASH_ROUNDS: Final = 101
"""What mosquitto_passwd takes; more would only slow the connect, the secrets are 256 random bits."""

_SALT_BYTES: Final = 12
"""What mosquitto_passwd takes."""

_MAX_CONNECTIONS: Final = 256
"""Far more codepacks and readers than one bus has."""

_EACH_LISTENER: Final = (
    f"max_connections {_MAX_CONNECTIONS}",
    "use_username_as_clientid true",  # nobody can take over another account's session
)
"""What mosquitto must be told for each listener."""

_PACKET_OVERHEAD: Final = 2048
"""Room in an MQTT packet for topic (at most 272 bytes) and properties (with the longest names, 800)."""

_MEMORY_LIMIT: Final = 256 * 1024 * 1024
"""Heap of the broker; two readers that have stopped reading fit into it with full queues."""


def files(
    accounts: Sequence[Account],
    *,
    root: bool,
    tls: TlsListener | None = None,
    place: Place = HERE,
    own: bool = False,
) -> Mapping[str, str]:
    """This is the text of each file, by name; paths in them are relative to their folder.

    Args:
        accounts: who may enter.
        root: whether mosquitto will run as root, which it must be told to remain: it would give up
            the right to its own folder.
        tls: a listener besides the Unix socket.
        place: where it runs, and an address that it listens at there.
        own: whether it also listens at a socket of its owner's.
    """
    config = _config(root=root, tls=tls, place=place, own=own)
    return {CONFIG_FILE: config, **account_files(accounts)}


def account_files(accounts: Sequence[Account]) -> Mapping[str, str]:
    """This is the text of the files that mosquitto reads again when it is told to."""
    return {
        PASSWORD_FILE: "".join(map(_password_line, accounts)),
        ACCESS_FILE: "".join(map(_access_lines, accounts)),
    }


def _config(*, root: bool, tls: TlsListener | None, place: Place, own: bool) -> str:
    lines = [
        # First, so that whoever finds the Unix socket open knows that the ports are.
        *(_tls_lines(tls) if tls else ()),
        *(_place_lines(place) if place.address else ()),
        *((f"listener 0 {OWN_SOCKET}", *_EACH_LISTENER) if own else ()),
        f"listener 0 {SOCKET}",  # without tls and place the only one: no port to reach from a network
        *_EACH_LISTENER,
        "allow_anonymous false",
        f"password_file {PASSWORD_FILE}",
        f"acl_file {ACCESS_FILE}",  # what is not listed there is forbidden
        f"message_size_limit {MAX_MESSAGE_BYTES}",
        f"max_packet_size {MAX_MESSAGE_BYTES + _PACKET_OVERHEAD}",
        f"max_queued_messages {MAX_WAITING_MESSAGES}",
        f"memory_limit {_MEMORY_LIMIT}",
        "persistence false",  # what must survive is kept by its sender: a PUBACK is no promise
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",  # says who was refused, which nobody else does
        "log_type subscribe",  # there is no limit for them: they are counted by what is logged
        "connection_messages true",
    ]
    if root:
        lines.append("user root")
    return "\n".join(lines) + "\n"


def _tls_lines(tls: TlsListener) -> Sequence[str]:
    return [
        f"listener {tls.port} {tls.host}",
        *_EACH_LISTENER,
        f"certfile {CERTIFICATE_FILE}",
        f"keyfile {KEY_FILE}",
    ]


def _place_lines(place: Place) -> Sequence[str]:
    """This is a listener at one address: without one it would be at all of them."""
    return [f"listener {place.port} {place.address}", *_EACH_LISTENER]


def _password_line(account: Account) -> str:
    salt = os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", account.secret.encode(), salt, _HASH_ROUNDS)
    fields = ("7", str(_HASH_ROUNDS), _base64(salt), _base64(digest))
    return f"{account.name}:${'$'.join(fields)}\n"


def _access_lines(account: Account) -> str:
    lines = [f"user {account.name}"]
    lines += [f"topic write {topics.text}" for topics in account.publishes]
    lines += [f"topic read {topics.text}" for topics in account.reads]
    return "\n".join(lines) + "\n\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
