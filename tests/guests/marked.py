"""A guest with known marks in its memory: in a program's, in files, in names, and in what was given back.

A mark is put together in the guest, so that the bytes of it are where a test wants them and not in a
command line as well.
"""

import base64
from dataclasses import dataclass
from struct import unpack
from typing import Final

from tests.guests.lab import Guest

__all__ = [
    "ARGUMENT",
    "FILE",
    "FILE_OFFSET",
    "FREED",
    "FREED_COUNT",
    "HEAP",
    "HEAP_COUNT",
    "MANY",
    "NAME",
    "PATH",
    "Marked",
    "mark",
]

ARGUMENT: Final = "QVMARK-argument"
"""The last word of a program's command line."""
FILE: Final = "QVMARK-once"
"""Once in a file in memory."""
PATH: Final = "/run/marked"
FILE_OFFSET: Final = 8292
MANY: Final = "QVMARK-many"
"""Again and again in another file, without a byte in between."""
HEAP: Final = "QVMARK-heap"
"""Likewise in a program's memory."""
HEAP_COUNT: Final = 1 << 14
"""44 pages of it, some of which do not follow each other in RAM."""
NAME: Final = "QVMARK-name"
"""The name of a file, short enough to be in the dentry itself."""
FREED: Final = "QVMARK-freed"
"""Once in each page of a file that was deleted."""
FREED_COUNT: Final = 1 << 10

_PAGE: Final = 4096
_DOUBLED: Final = 'BEGIN{{s="QV" "{mark}"; for(i=0;i<14;i++) s=s s; {then}}}'
_ONE_A_PAGE: Final = (
    'BEGIN{s=sprintf("%s%4084s", "QV" "MARK-freed", ""); for(i=0;i<10;i++) s=s s; printf "%s", s}'
)


@dataclass(frozen=True, slots=True)
class Marked:
    """This is a guest whose memory has the marks.

    Attributes:
        heap_pid: of the program that has HEAP_COUNT marks in one run.
        argument_pid: of the program with the marked command line.
    """

    guest: Guest
    heap_pid: int
    argument_pid: int

    def frame(self, pid: int, va: int) -> int:
        """This is the number of the frame that a process has at an address, by its own pagemap."""
        text = self.guest.run(
            f"dd if=/proc/{pid}/pagemap bs=8 skip={va // _PAGE} count=1 2>/dev/null | base64"
        )
        entry: int = unpack("<Q", base64.b64decode(text))[0]
        assert entry >> 63, f"{va:#x} is in RAM"
        return entry & ((1 << 55) - 1)

    def memory(self, pid: int, va: int, size: int) -> bytes:
        """This is what a process has in its memory, of one page."""
        text = self.guest.run(
            f"dd if=/proc/{pid}/mem bs={_PAGE} skip={va // _PAGE} count=1 2>/dev/null"
            f" | tail -c +{va % _PAGE + 1} | head -c {size} | base64"
        )
        return base64.b64decode(text)


def mark(guest: Guest) -> Marked:
    """This puts the marks there."""
    guest.run(f"{{ head -c {FILE_OFFSET} /dev/zero; printf 'QV%s' MARK-once; }} >{PATH}")
    many = _DOUBLED.format(mark="MARK-many", then='printf "%s", s')
    guest.run(f"awk '{many}' >/run/many")
    guest.run("touch /run/$(printf 'QV%s' MARK-name)")
    guest.run(f"awk '{_ONE_A_PAGE}' >/run/freed; rm /run/freed")
    argument = _started(
        guest, 'exec sh -c "touch /run/argument; sleep 100000; :" "$(printf QV%s MARK-argument)"'
    )
    rest = 'system("touch /run/heap; exec sleep 100000"); print s'
    heap = _started(guest, f"exec awk '{_DOUBLED.format(mark='MARK-heap', then=rest)}'")
    waited = guest.run(
        "i=0; while ! [ -e /run/heap -a -e /run/argument ] && [ $i -lt 600 ]; do"
        " usleep 50000; i=$((i+1)); done; ls /run/heap /run/argument"
    )
    assert waited == b"/run/argument\n/run/heap\n", waited
    return Marked(guest, heap, argument)


def _started(guest: Guest, program: str) -> int:
    """This starts a program that outlives the command, and is its pid."""
    return int(guest.run(f"({program}) </dev/null >/dev/null 2>&1 & echo $!"))
