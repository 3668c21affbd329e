"""The codepacks that come with qvmi."""

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.hidden_processes import HiddenProcesses

__all__ = ["builtin_codepacks"]


def builtin_codepacks() -> tuple[Codepack, ...]:
    """These are all of them, with their usual settings."""
    return (HiddenProcesses(),)
