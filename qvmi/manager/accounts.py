"""Who may say and hear what on the bus of one machine: the manager, and each codepack in two roles."""

from collections.abc import Iterable, Mapping
from typing import Final

from qvmi.bus.account import Account
from qvmi.bus.receipt import RECEIPT
from qvmi.bus.topic import REPLY, REQUEST, TopicFilter
from qvmi.codepacks.alert import AlertState
from qvmi.policy import Grant, Policy

__all__ = [
    "ALERTS",
    "DURABLE_KINDS",
    "MACHINE",
    "MANAGER",
    "SERVICES",
    "answering_account",
    "consumer_account",
    "of_packs",
    "outbox_account",
    "pack_account",
    "pack_login",
    "reader_account",
    "service_account",
    "throttle_account",
]

MANAGER: Final = "manager"
"""The service that codepacks ask."""

ALERTS: Final = "alerts"
"""The consumer that takes in the alerts of all codepacks, and gives receipts for them."""

MACHINE: Final = "machine"
"""The kind of the manager's messages on the machine itself."""

DURABLE_KINDS: Final = (str(AlertState.RAISED), str(AlertState.CLEARED))
"""The kinds of messages that must not be lost: they go through an outbox."""

SERVICES: Final[Mapping[str, frozenset[Grant]]] = {
    # Whoever is given the RAM must be able to ask what became of the machine.
    MANAGER: frozenset(
        {Grant.READ_MEMORY, Grant.READ_REGISTERS, Grant.PAUSE, Grant.BREAKPOINT},
    )
}
"""What each service does for those who are granted it: the broker lets nobody else ask."""

_OUTBOX: Final = "outbox"
_READER: Final = "watch"
_THROTTLE: Final = "qvmi-throttle"


def service_account(vm: str) -> Account:
    """This is who answers, and tells of the machine."""
    return Account.of_service(vm, MANAGER)


def consumer_account(vm: str) -> Account:
    """This is who takes in alerts."""
    return Account.of_consumer(vm, ALERTS)


def reader_account(vm: str) -> Account:
    """This is who reads what else codepacks and manager say."""
    return Account.of_reader(f"{vm}.{_READER}", TopicFilter(vm))


def throttle_account() -> Account:
    """This is who counts what everybody says; its name is none that a machine or a codepack has."""
    return Account.of_reader(_THROTTLE, TopicFilter())


def pack_account(vm: str, codepack: str, policy: Policy, *, asks: Iterable[str] = ()) -> Account:
    """This is who speaks for a codepack, hears of the machine, and asks what its policy has a use for.

    Args:
        vm: the machine's name on the bus.
        codepack: who speaks.
        policy: what it may do.
        asks: other codepacks that it may ask, if it may read memory: they tell what is in there.
    """
    model = Account.of_granted(vm, codepack, policy, services={**SERVICES, **of_packs(asks)})
    reads = (*model.reads, TopicFilter(vm, MANAGER, MACHINE))
    return Account(model.name, model.publishes, reads)


def of_packs(names: Iterable[str]) -> dict[str, frozenset[Grant]]:
    """This is what codepacks that answer do for others: they tell of the guest's memory."""
    return dict.fromkeys(names, frozenset({Grant.READ_MEMORY}))


def pack_login(vm: str, codepack: str, secret: str, *, asks: Iterable[str] = ()) -> Account:
    """This is the same as its own process has it: what the account may, the broker alone knows."""
    model = Account.of_codepack(vm, codepack, services=(*SERVICES, *asks))
    reads = (*model.reads, TopicFilter(vm, MANAGER, MACHINE))
    return Account(model.name, model.publishes, reads, secret)


def answering_account(account: Account, vm: str, codepack: str) -> Account:
    """This is a codepack's account that may also answer what the codepack is asked."""
    publishes = (*account.publishes, TopicFilter(vm, None, REPLY, codepack))
    reads = (*account.reads, TopicFilter(vm, None, REQUEST, codepack))
    return Account(account.name, publishes, reads, account.secret)


def outbox_account(vm: str, codepack: str, secret: str | None = None) -> Account:
    """This is who sends a codepack's alerts until there are receipts for them."""
    speaks = tuple(TopicFilter(vm, codepack, kind) for kind in DURABLE_KINDS)
    receipts = TopicFilter(vm, ALERTS, RECEIPT)
    model = Account(f"{vm}.{codepack}.{_OUTBOX}", speaks, (receipts,))
    return model if secret is None else Account(model.name, speaks, (receipts,), secret)
