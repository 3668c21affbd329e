"""What a bus is, whatever carries it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qvmi.bus.account import Account
from qvmi.bus.message import Message
from qvmi.bus.requests import Requests
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import Topic, TopicFilter

__all__ = ["Bus", "Channel", "OpenChannel", "Publisher", "first_of"]


class Publisher(Protocol):
    """This is the half of a bus that speaks, which is all that most codepacks need."""

    async def publish(self, message: Message, *, retain: bool = False) -> None:
        """This gives the message to the channel and returns once the channel has taken it.

        Args:
            message: what to publish.
            retain: whether the channel keeps it, in the place of the one before at its topic, for
                those who subscribe later.

        Raises:
            BusRefused: the account may not publish there.
            BadMessage: the message is too long, or its body is no JSON.
            BusError: the channel is closed or lost, or does not answer.
        """
        ...


class Bus(Publisher, Protocol):
    """This is one account's end of a channel.

    Every implementation passes ``tests/contract/test_bus.py``.
    """

    async def subscribe(
        self, topics: TopicFilter, *, retained: bool = True, group: str | None = None
    ) -> Subscription:
        """This starts to receive what is published from now on, and first what was retained.

        Args:
            topics: what to receive.
            retained: whether to take what was published to be retained; if not, it is refused and
                counted, before or now.
            group: made by :func:`~qvmi.bus.group.new_group`; each message then goes to one of those who
                subscribe to the same topics in this group, and nothing that was retained before; None
                for all messages. mosquitto lets whoever is on the bus into a group whose name it knows;
                those who may not read there get nothing, but what was their turn is lost. So the name
                is a secret.

        Raises:
            BusRefused: the account may not read there.
            UsageError: the group is none, or this bus is in it already, or subscribed to the
                same topics with another ``retained``.
            BusError: the channel is closed or lost, or does not answer.
        """
        ...

    async def request(
        self, topic: Topic, body: Mapping[str, object], *, deadline_s: float
    ) -> Message:
        """This asks a service, and waits for its answer.

        Args:
            topic: where to ask; see :meth:`~qvmi.bus.topic.Topic.of_request`.
            body: what is asked.
            deadline_s: how long an answer is of use; the service is told.

        Returns:
            The answer. That the service, and nobody else, gave it is what the channel guards.

        Raises:
            RequestTimeout: there was no answer in time.
            BusRefused: the account may not ask there, or not read the answer.
            BadMessage: the body is no JSON, or too long.
            UsageError: the deadline cannot be.
            BusError: the channel is closed or lost, or does not answer.
        """
        ...

    async def serve(
        self, service: str, *, vm: str | None = None, group: str | None = None
    ) -> Requests:
        """This starts to receive what a service is asked from now on.

        Args:
            service: its name.
            vm: only about this machine; None for all.
            group: for those who serve together, as in `subscribe`: each request goes to one of them.

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

    async def connect(self, account: Account, *, will: Message | None = None) -> Bus:
        """This enters the channel.

        Args:
            account: who enters.
            will: what the channel publishes, and retains, when the bus is closed, lost, or its
                program killed, such as the status that nobody looks any more; None for nothing.

        Raises:
            BusRefused: the account is unknown, or its secret is wrong, or the will is not its own.
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
