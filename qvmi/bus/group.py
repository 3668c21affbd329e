"""Names of groups whose members share messages: each is a secret of those members.

References: MQTT Version 5.0 (OASIS), 4.8.2 Shared Subscriptions; mosquitto.conf(5), ``acl_file``, whose lines
are of topics: which group a client subscribes in is nothing that they can allow or forbid. So whoever is on
the bus and knows a group's name is a member, and what is sent to it is lost to the others, or to everybody
where it may not read the topic.
"""

import re
import secrets
from typing import Final

from qvmi.bus.topic import NAME_PATTERN, is_name
from qvmi.errors import UsageError

__all__ = ["is_group", "new_group"]

_SECRET_BYTES: Final = 16
"""128 bits, which nobody guesses; the broker tells of no group."""

_MAX_NAME: Final = 63 - 1 - 2 * _SECRET_BYTES
"""Letters of a group's own name: with its secret it is a name as all others."""

_GROUP: Final = re.compile(rf"{NAME_PATTERN.partition('{')[0]}+-[0-9a-f]{{{2 * _SECRET_BYTES}}}")


def new_group(name: str) -> str:
    """This is a new group to subscribe in: to be told to its members and nobody else.

    Args:
        name: what people call it, at most 30 of a-z, 0-9 and -.

    Raises:
        UsageError: it is no name, or too long.
    """
    if not is_name(name) or len(name) > _MAX_NAME:
        raise UsageError(f"group {name!r}: use 1 to {_MAX_NAME} of a-z, 0-9 and -")
    return f"{name}-{secrets.token_hex(_SECRET_BYTES)}"


def is_group(text: str) -> bool:
    """This tells whether a text is a group that :func:`new_group` has made."""
    return is_name(text) and _GROUP.fullmatch(text) is not None
