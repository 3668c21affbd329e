"""Where on the bus a message lies: topics and filters made only of names that cannot escape.

References: MQTT Version 5.0 (OASIS), 4.7 Topic Names and Topic Filters.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from qvmi.errors import BadMessage, UsageError

__all__ = ["TOPIC_ROOT", "Topic", "TopicFilter", "is_name", "name_from"]

TOPIC_ROOT: Final = "qvmi/v1"
"""Every topic of ours lies below it; the number is the version of the message format."""

_NAME: Final = re.compile(r"[a-z0-9-]{1,63}")
_OUTSIDE_NAME: Final = re.compile(r"[^a-z0-9]+")
_NAME_MAX: Final = 63


def is_name(text: str) -> bool:
    """This tells whether the text may name a machine, a codepack or a kind of message."""
    return _NAME.fullmatch(text) is not None


def name_from(text: str) -> str:
    """This makes a name out of any text, such as a socket's path, keeping its end if it is long."""
    words = _OUTSIDE_NAME.sub("-", text.lower()).strip("-")
    return words[-_NAME_MAX:].strip("-") or "unnamed"


@dataclass(frozen=True, slots=True)
class Topic:
    """This is the place of one message: ``qvmi/v1/<vm>/<codepack>/<kind>``.

    Args:
        vm: the watched machine.
        codepack: who speaks.
        kind: such as ``alert``.

    Raises:
        UsageError: a part is no name.
    """

    vm: str
    codepack: str
    kind: str

    def __post_init__(self) -> None:
        _require_names(vm=self.vm, codepack=self.codepack, kind=self.kind)

    @property
    def text(self) -> str:
        """This is the topic as MQTT has it."""
        return f"{TOPIC_ROOT}/{self.vm}/{self.codepack}/{self.kind}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """This reads a topic of ours.

        Raises:
            BadMessage: it is none.
        """
        root, _, rest = text.partition(f"{TOPIC_ROOT}/")
        parts = rest.split("/")
        if root or len(parts) != 3 or not all(map(is_name, parts)):  # noqa: PLR2004 - vm, codepack, kind
            raise BadMessage(f"topic {text!r} is not {TOPIC_ROOT}/<vm>/<codepack>/<kind>")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class TopicFilter:
    """This selects topics; None stands for any.

    Args:
        vm: only of this machine.
        codepack: only of this speaker.
        kind: only of this kind.

    Raises:
        UsageError: a part is no name.
    """

    vm: str | None = None
    codepack: str | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        parts = {"vm": self.vm, "codepack": self.codepack, "kind": self.kind}
        _require_names(**{role: name for role, name in parts.items() if name is not None})

    @property
    def text(self) -> str:
        """This is the filter as MQTT has it, such as ``qvmi/v1/web/#``."""
        levels = [level or "+" for level in (self.vm, self.codepack, self.kind)]
        while levels and levels[-1] == "+":
            levels.pop()
        below = [] if self.kind else ["#"]
        return "/".join([TOPIC_ROOT, *levels, *below])

    def matches(self, topic: Topic) -> bool:
        """This tells whether the filter selects the topic."""
        return (
            self.vm in (None, topic.vm)
            and self.codepack in (None, topic.codepack)
            and self.kind in (None, topic.kind)
        )

    def covers(self, other: "TopicFilter") -> bool:
        """This tells whether every topic that the other filter selects is selected by this one."""
        return (
            self.vm in (None, other.vm)
            and self.codepack in (None, other.codepack)
            and self.kind in (None, other.kind)
        )


def _require_names(**names: str) -> None:
    for role, name in names.items():
        if not is_name(name):
            raise UsageError(f"{role} {name!r} is no name: use 1 to {_NAME_MAX} of a-z, 0-9 and -")
