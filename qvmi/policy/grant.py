"""The kinds of access to a guest, and which limits each can have."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

__all__ = ["LIMITS_OF", "Grant"]


class Grant(StrEnum):
    """This is one kind of access to a guest."""

    READ_MEMORY = "read-memory"
    READ_REGISTERS = "read-registers"
    PAUSE = "pause"
    BREAKPOINT = "breakpoint"
    WRITE = "write"
    DISK = "disk"
    NETWORK_CAPTURE = "network-capture"
    NIC = "nic"
    CONTROL = "control"


LIMITS_OF: Final[Mapping[Grant, frozenset[str]]] = {
    Grant.READ_MEMORY: frozenset({"physical", "virtual", "per-second", "bytes-per-second"}),
    Grant.READ_REGISTERS: frozenset({"per-second"}),
    Grant.PAUSE: frozenset({"per-second", "longest-s"}),
    Grant.BREAKPOINT: frozenset({"virtual", "per-second"}),
    Grant.WRITE: frozenset({"physical", "virtual", "per-second", "bytes-per-second"}),
    Grant.DISK: frozenset({"per-second", "bytes-per-second"}),
    Grant.NETWORK_CAPTURE: frozenset({"per-second", "bytes-per-second"}),
    Grant.NIC: frozenset({"per-second"}),
    Grant.CONTROL: frozenset({"per-second"}),
}
"""The limits that mean something for each grant; another one would be a promise that nobody keeps."""
