"""What a plugin says of itself and of its options, without any type of Volatility's."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["OptionKind", "PluginDescription", "PluginOption"]


class OptionKind(StrEnum):
    """This is how an option is given."""

    FLAG = "flag"
    """It is there or not."""
    VALUE = "value"
    LIST = "list"
    """Any number of values."""


@dataclass(frozen=True, slots=True)
class PluginOption:
    """This is one option of a plugin.

    Args:
        name: as the plugin calls it.
        text: what it is for.
        kind: how it is given.
        type: of its value, or of each of its values.
        required: whether the plugin cannot do without.
        choices: the values there are; empty for any.
    """

    name: str
    text: str
    kind: OptionKind
    type: type
    required: bool
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PluginDescription:
    """This is what a plugin says of itself.

    Args:
        name: its full name.
        summary: one line.
        details: what else there is to know; mostly nothing.
        options: in the plugin's own order.
    """

    name: str
    summary: str
    details: str
    options: tuple[PluginOption, ...]
