"""The lines of QEMU's human monitor that may be used through a gateway: exact ones, and reads of memory.

References: QEMU ``hmp-commands.hx``, ``hmp-commands-info.hx``, ``monitor/hmp.c``
(``monitor_parse_arguments``: what else than a plain number may stand for an address).

Whatever is not here is refused. So are other blanks, other spellings and expressions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.policy import Grant

__all__ = ["MAX_PRINTED", "MonitorLine", "monitor_line"]

MAX_PRINTED: Final = 1 << 15
"""The most bytes that one line may print; that is half a megabyte of text."""

_LINES: Final[Mapping[str, Grant | None]] = {
    "help": None,
    "info": None,
    "info version": None,
    "info name": None,
    "info status": None,
    "info cpus": None,
    "info registers": Grant.READ_REGISTERS,
    "info registers -a": Grant.READ_REGISTERS,
    "info mtree": None,
    "info mtree -f": None,
    "info mtree -f -o": None,
}
_UNITS: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
# The instructions (i) are left out: how many bytes those have nobody knows before.
_XP: Final = re.compile(
    r"xp /([0-9]{0,5})(?:[xduoc]([bhwg])|([bhwg])[xduoc]) 0x([0-9a-fA-F]{1,16})"
)


@dataclass(frozen=True, slots=True)
class MonitorLine:
    """This is a line that may be used.

    Args:
        text: the line.
        grant: what it needs.
        memory: the physical memory that it reads, if it does.
    """

    text: str
    grant: Grant | None
    memory: PaRange | None = None


def monitor_line(text: str) -> MonitorLine | None:
    """This reads a line; None where it may not be used."""
    if text in _LINES:
        return MonitorLine(text, _LINES[text])
    match = _XP.fullmatch(text)
    if match is None:
        return None
    count = int(match[1] or "1")
    size = count * _UNITS[match[2] or match[3]]
    start = int(match[4], 16)
    if not 0 < size <= MAX_PRINTED or start + size > 1 << 64:
        return None
    return MonitorLine(text, Grant.READ_MEMORY, PaRange(Pa(start), Pa(start + size)))
