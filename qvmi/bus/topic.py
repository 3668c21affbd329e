"""Where on the bus a message lies: topics and filters made only of names that cannot escape.

References: MQTT Version 5.0 (OASIS), 4.7 Topic Names and Topic Filters.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from qvmi.errors import BadMessage, UsageError

__all__ = [
    "ANY",
    "NAME_PATTERN",
    "REPLY",
    "REQUEST",
    "SPOKEN",
    "TOPIC_ROOT",
    "Each",
    "Topic",
    "TopicFilter",
    "is_name",
    "name_from",
    "speaker_in",
]

TOPIC_ROOT: Final = "qvmi/v1"
"""Every topic of ours lies below it; the number is the version of the message format."""

REQUEST: Final = "request"
"""The kind of a message that asks a service something; its topic names the service behind the kind."""

REPLY: Final = "reply"
"""The kind of a service's answer. It lies below the prefix of whoever asked, and names the service too."""


SPOKEN: Final = ("alert", "cleared", "finding", "status")
"""The kinds of what codepacks say by themselves, to whoever listens."""


class Each(Enum):
    """This stands in a filter for any one name; it is no text, so that no name can turn into it."""

    ANY = "+"


ANY: Final = Each.ANY

_ADDRESSED: Final = frozenset({REQUEST, REPLY})
"""The kinds whose topics name a peer."""

NAME_PATTERN: Final = "[a-z0-9-]{1,63}"
"""What the name of a machine, a codepack, a kind or a service is made of."""

_NAME: Final = re.compile(NAME_PATTERN)
_OUTSIDE_NAME: Final = re.compile(r"[^a-z0-9]+")
_NAME_MAX: Final = 63
_LEVELS: Final = (3, 4)
"""Names in a topic behind the root: without a peer, or with one."""


def is_name(text: str) -> bool:
    """This tells whether the text may name a machine, a codepack or a kind of message."""
    return _NAME.fullmatch(text) is not None


def name_from(text: str) -> str:
    """This makes a name out of any text, such as a socket's path, keeping its end if it is long."""
    words = _OUTSIDE_NAME.sub("-", text.lower()).strip("-")
    return words[-_NAME_MAX:].strip("-") or "unnamed"


def speaker_in(topic: str) -> str | None:
    """This is whose name a topic lies below, as ``vm.codepack``, though it may be none of ours otherwise.

    Returns:
        None where it lies below no name of ours.
    """
    root, _, rest = topic.partition(f"{TOPIC_ROOT}/")
    vm, _, below = rest.partition("/")
    codepack = below.partition("/")[0]
    return f"{vm}.{codepack}" if not root and is_name(vm) and is_name(codepack) else None


@dataclass(frozen=True, slots=True)
class Topic:
    """This is the place of one message: ``qvmi/v1/<vm>/<codepack>/<kind>``, or that and ``/<peer>``.

    Args:
        vm: the watched machine.
        codepack: whose it is: who speaks or, for a reply, who had asked.
        kind: such as ``alert``.
        peer: the service that a request is for, or that replies; None for other kinds.

    Raises:
        UsageError: a part is no name, or a peer is missing or too much.
    """

    vm: str
    codepack: str
    kind: str
    peer: str | None = None

    def __post_init__(self) -> None:
        _require_names(vm=self.vm, codepack=self.codepack, kind=self.kind)
        if self.peer is not None:
            _require_names(peer=self.peer)
        if (self.peer is not None) != (self.kind in _ADDRESSED):
            raise UsageError(
                f"kind {self.kind!r} with peer {self.peer!r}: requests and replies have one"
            )

    @classmethod
    def of_request(cls, vm: str, codepack: str, service: str) -> Self:
        """This is where a codepack asks a service about a machine."""
        return cls(vm, codepack, REQUEST, service)

    @property
    def speaker(self) -> str:
        """This is whose name it lies below, as ``vm.codepack``."""
        return f"{self.vm}.{self.codepack}"

    @property
    def reply(self) -> "Topic":
        """This is where the answer to a request of this topic lies: below the asker's own prefix."""
        return Topic(self.vm, self.codepack, REPLY, self.peer)

    @property
    def text(self) -> str:
        """This is the topic as MQTT has it."""
        text = f"{TOPIC_ROOT}/{self.vm}/{self.codepack}/{self.kind}"
        return text if self.peer is None else f"{text}/{self.peer}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """This reads a topic of ours.

        Raises:
            BadMessage: it is none.
        """
        root, _, rest = text.partition(f"{TOPIC_ROOT}/")
        parts = rest.split("/")
        try:
            if not root and len(parts) in _LEVELS:
                return cls(*parts)
        except UsageError:
            pass
        raise BadMessage(f"topic {text!r} is not {TOPIC_ROOT}/<vm>/<codepack>/<kind>[/<peer>]")


@dataclass(frozen=True, slots=True)
class TopicFilter:
    """This selects topics.

    Args:
        vm: only of this machine; None for any.
        codepack: only below this codepack's name; None for any.
        kind: only of this kind; ``ANY`` for those that name no peer, None for all.
        peer: only with this peer; ``ANY`` for any; None for topics without one, where a kind is given.

    Raises:
        UsageError: a part is no name, or a peer is given without a kind.
    """

    vm: str | None = None
    codepack: str | None = None
    kind: str | Each | None = None
    peer: str | Each | None = None

    def __post_init__(self) -> None:
        parts = {"vm": self.vm, "codepack": self.codepack, "kind": self.kind, "peer": self.peer}
        _require_names(**{role: name for role, name in parts.items() if isinstance(name, str)})
        if self.peer is not None and self.kind is None:
            raise UsageError(f"peer {self.peer!r} without a kind selects nothing")

    @property
    def text(self) -> str:
        """This is the filter as MQTT has it, such as ``qvmi/v1/web/#``."""
        levels = [self.vm or ANY.value, self.codepack or ANY.value]
        if self.kind is None:
            while levels and levels[-1] == ANY.value:
                levels.pop()
            return "/".join([TOPIC_ROOT, *levels, "#"])
        below = [self.kind] if self.peer is None else [self.kind, self.peer]
        names = [name.value if isinstance(name, Each) else name for name in below]
        return "/".join([TOPIC_ROOT, *levels, *names])

    def matches(self, topic: Topic) -> bool:
        """This tells whether the filter selects the topic."""
        return self.covers(topic)

    def covers(self, other: "TopicFilter | Topic") -> bool:
        """This tells whether every topic that the other filter selects is selected by this one."""
        return (
            self.vm in (None, other.vm)
            and self.codepack in (None, other.codepack)
            and (self.kind is None or self._covers_kind(other))
        )

    def _covers_kind(self, other: "TopicFilter | Topic") -> bool:
        if other.kind is None or (self.peer is None) != (other.peer is None):
            return False
        return self.kind in (ANY, other.kind) and self.peer in (None, ANY, other.peer)


def _require_names(**names: str) -> None:
    for role, name in names.items():
        if not is_name(name):
            raise UsageError(f"{role} {name!r} is no name: use 1 to {_NAME_MAX} of a-z, 0-9 and -")
