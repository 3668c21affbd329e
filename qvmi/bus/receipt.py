"""The receipt: a consumer's word that it has handled messages, so that none of them is sent again."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from qvmi.bus.message import Message

__all__ = ["MAX_IDS", "RECEIPT", "Receipt"]

RECEIPT: Final = "receipt"
"""The kind of the messages that carry one."""

MAX_IDS: Final = 256
"""Messages that one receipt is for: with the longest ids it takes 17 KiB of the 64 of a message."""


class Receipt(msgspec.Struct, frozen=True):
    """This is the body of a message of that kind; whose it is, its topic says.

    Args:
        to: the codepack that sent them; empty for all: the consumer has just come, and wants what
            it missed.
        ids: of the messages.
    """

    to: str
    ids: tuple[str, ...] = ()

    def message(self, *, vm: str, consumer: str) -> Message:
        """This is the message that carries it."""
        body: dict[str, object] = {"to": self.to, "ids": self.ids}
        return Message(vm=vm, codepack=consumer, kind=RECEIPT, time=time.time(), body=body)

    @classmethod
    def split(cls, to: str, ids: Sequence[str]) -> list["Receipt"]:
        """These are receipts for any number of messages."""
        starts = range(0, len(ids), MAX_IDS)
        return [cls(to, tuple(ids[start : start + MAX_IDS])) for start in starts]
