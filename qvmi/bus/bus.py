"""What a bus is, whatever carries it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qvmi.bus.account import Account
from qvmi.bus.message import Message
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import TopicFilter

__all__ = ["Bus", "Channel", "OpenChannel", "first_of"]


class Bus(Protocol):
    """This is one account's end of a channel.

    Every implementation passes ``tests/contract/test_bus.py``.
    """

    async def publish(self, message: Message) -> None:
        """This gives the message to the channel and returns once the channel has taken it.

        Raises:
            BusRefused: the account may not publish there.
            BadMessage: the message is too long, or its body is no JSON.
            BusError: the channel is closed or lost, or does not answer.
        """
        ...

    async def subscribe(self, topics: TopicFilter) -> Subscription:
        """This starts to receive what is published from now on.

        Raises:
            BusRefused: the account may not read there.
            BusError: the channel is closed or lost, or does not answer.
        """
        ...

    async def close(self) -> None:
        """This leaves the channel and ends the subscriptions; closing twice does nothing."""
        ...


class Channel(Protocol):
    """This is what carries messages between accounts."""

    async def connect(self, account: Account) -> Bus:
        """This enters the channel.

        Raises:
            BusRefused: the account is unknown, or its secret is wrong.
            BrokerUnavailable: there is nothing to connect to.
        """
        ...


OpenChannel = Callable[[Sequence[Account]], AbstractAsyncContextManager[Channel]]
"""This opens a channel that these accounts, and no others, may enter."""


def first_of(errors: ExceptionGroup[Exception]) -> Exception:
    """This is the first error of a group of groups, as tasks that share a connection end with one."""
    error: Exception = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
