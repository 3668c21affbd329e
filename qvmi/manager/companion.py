"""Whoever works beside the codepacks on their bus, for as long as they run."""

from typing import Never, Protocol

from qvmi.bus.account import Account
from qvmi.bus.bus import Channel

__all__ = ["Companion"]


class Companion(Protocol):
    """This is let in by an account of its own, and works until it is cancelled."""

    @property
    def account(self) -> Account:
        """This is who it is on the bus."""
        ...

    async def run(self, channel: Channel) -> Never:
        """This works; what it raises ends the watch."""
        ...
