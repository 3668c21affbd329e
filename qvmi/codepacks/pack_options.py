"""What a codepack is made with: its baseline, with what was set in place of it, ready to be handed over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["NO_OPTIONS", "Option", "PackOptions", "Value"]

Value: TypeAlias = bool | int | float | str
Option: TypeAlias = Value | list[Value]
"""What an option may be: what a manifest can say."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """These are the arguments that a codepack's entry is called with, but for its interval.

    Args:
        values: by name.
        descriptors: those among them that are open files, which its process must be given.
    """

    values: Mapping[str, Option] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


NO_OPTIONS: Final = PackOptions()
"""Those of a codepack that has none."""
