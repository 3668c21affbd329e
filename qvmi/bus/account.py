"""Who may use the bus: a name, a secret, and the topics that go with them."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from qvmi.bus.receipt import RECEIPT
from qvmi.bus.topic import ANY, REPLY, REQUEST, SPOKEN, Topic, TopicFilter, is_name
from qvmi.errors import BusRefused, UsageError
from qvmi.policy import Grant, Policy

__all__ = ["Account"]

_SECRET_BYTES: Final = 32
"""Random bytes in a secret: 256 bits, more than can be guessed."""


@dataclass(frozen=True, slots=True)
class Account:
    """This is one user of the bus, made for one run and known to nobody else.

    Args:
        name: its user name; dots join names, so that a codepack's account cannot be mistaken.
        publishes: the topics it may publish to.
        reads: the topics it may subscribe to.
        secret: its password; random.

    Raises:
        UsageError: the name is not made of names and dots.
    """

    name: str
    publishes: tuple[TopicFilter, ...] = ()
    reads: tuple[TopicFilter, ...] = ()
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(_SECRET_BYTES), repr=False)

    def __post_init__(self) -> None:
        if not all(map(is_name, self.name.split("."))):
            raise UsageError(f"account {self.name!r} is no name")

    @classmethod
    def of_codepack(cls, vm: str, codepack: str, *, services: Iterable[str] = ()) -> Self:
        """This is an account that speaks for one codepack about one machine.

        It reads nothing but the replies of the services that it may ask. It cannot write below its
        own ``reply``: what lies there is from the service that the topic names, and nobody else.
        """
        replies = tuple(TopicFilter(vm, codepack, REPLY, service) for service in services)
        return cls(f"{vm}.{codepack}", publishes=_spoken_by(vm, codepack), reads=replies)

    @classmethod
    def of_granted(
        cls,
        vm: str,
        codepack: str,
        policy: Policy,
        *,
        services: Mapping[str, frozenset[Grant]],
    ) -> Self:
        """This is a codepack's account that may ask only those services that its policy gives it a use of.

        What it says by itself is of the kinds in ``SPOKEN``, and of no other.

        Args:
            vm: the watched machine.
            codepack: who speaks.
            policy: what it is granted.
            services: what each service does for whoever is granted it: any of these is enough to ask.
        """
        asked = [name for name, does in services.items() if does & policy.grants]
        requests = (TopicFilter(vm, codepack, REQUEST, service) for service in asked)
        replies = (TopicFilter(vm, codepack, REPLY, service) for service in asked)
        # The broker keeps a retained message for each topic, and has no bound for how many there are.
        own = (TopicFilter(vm, codepack, kind) for kind in SPOKEN)
        return cls(f"{vm}.{codepack}", publishes=(*own, *requests), reads=(*replies,))

    @classmethod
    def of_service(cls, vm: str, name: str) -> Self:
        """This is an account that answers what codepacks ask a service about one machine."""
        replies = TopicFilter(vm, None, REPLY, name)
        requests = TopicFilter(vm, None, REQUEST, name)
        return cls(f"{vm}.{name}", publishes=(*_spoken_by(vm, name), replies), reads=(requests,))

    @classmethod
    def of_sender(cls, vm: str, codepack: str, consumers: Iterable[str]) -> Self:
        """This is a codepack's account that may also read the receipts for what it sends."""
        receipts = tuple(TopicFilter(vm, consumer, RECEIPT) for consumer in consumers)
        return cls(f"{vm}.{codepack}", publishes=_spoken_by(vm, codepack), reads=receipts)

    @classmethod
    def of_consumer(cls, vm: str, name: str) -> Self:
        """This is an account that reads all about one machine, and gives receipts for it."""
        receipts = TopicFilter(vm, name, RECEIPT)
        return cls(f"{vm}.{name}", publishes=(receipts,), reads=(TopicFilter(vm),))

    @classmethod
    def of_reader(cls, name: str, topics: TopicFilter) -> Self:
        """This is an account that only reads."""
        return cls(name, reads=(topics,))

    def require_publish(self, topic: Topic) -> None:
        """This raises BusRefused unless the account may publish there."""
        if not any(allowed.matches(topic) for allowed in self.publishes):
            raise BusRefused(topic.text, f"account {self.name!r} may not publish there")

    def require_read(self, topics: TopicFilter) -> None:
        """This raises BusRefused unless the account may read all that the filter selects."""
        if not any(allowed.covers(topics) for allowed in self.reads):
            raise BusRefused(topics.text, f"account {self.name!r} may not read there")


def _spoken_by(vm: str, codepack: str) -> tuple[TopicFilter, ...]:
    """These are the topics of what a codepack says, and of what it asks anybody."""
    return TopicFilter(vm, codepack, ANY), TopicFilter(vm, codepack, REQUEST, ANY)
