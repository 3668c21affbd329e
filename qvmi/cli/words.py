"""The words that commands take for an answer."""

from typing import Final

__all__ = ["ALL_PACKS", "PACKS", "SHELLS"]

PACKS: Final = ("hidden-processes",)
"""The names of the codepacks that ``watch`` can run."""

ALL_PACKS: Final = "all"

SHELLS: Final = ("bash", "zsh", "fish")
"""The shells that ``completion`` makes scripts for."""
