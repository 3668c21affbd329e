"""Codepacks that take more than is theirs: memory, time, or their leave."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from qvmi.codepacks.codepack import Finding
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["Greedy", "Hanging", "Leaving"]

MUCH = 512 << 20


class Greedy:
    """It takes half a gigabyte, and gives it back."""

    name = "greedy"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del memory
        guest.processes()
        bytearray(MUCH)
        return []


class Hanging:
    """It begins what takes longer than the universe has lasted, and lets nothing else in its process run."""

    name = "hanging"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del guest, memory
        with Path("looks").open("a") as file:
            file.write("x")
        re.match("(a*)*b", "a" * 100)
        return []


class Leaving:
    """It ends its process as if all were well."""

    name = "leaving"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del guest, memory
        os._exit(os.EX_OK)
