"""What the manager tells the process of a codepack, over its standard input, and what that answers first."""

from typing import Final, TypeVar

import msgspec

from qvmi.codepacks.triggers import NO_TRIGGERS, Triggers
from qvmi.errors import BadMessage
from qvmi.remote.handed_memory import HandedMemory

__all__ = ["MAX_LINE", "Caveats", "Hello", "Orders", "read_line"]

MAX_LINE: Final = 1 << 20
"""Bytes of a line: the RAM of a machine with hundreds of memory modules takes some 30 KiB."""

Line = TypeVar("Line")


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """This is the first line.

    Args:
        vm: the machine's name on the bus.
        codepack: the codepack's.
        entry: what makes the codepack, as ``module:name``; called with its interval.
        code: descriptor of the verified bytes that the entry is in; None where it is installed.
        interval_s: from the start of one look to the start of the next.
        address: how the manager has attached to the machine.
        reads_registers: whether the codepack may read them.
        socket: the broker's.
        secret: for the codepack's account.
        outbox_secret: for that of its outbox.
        profiles: the folder of what is known of kernels, for reading.
        memory: where the RAM lies in the files that are inherited.
        descriptors: of those files.
        landlock: whether to give up writing outside of the codepack's own folder.
        writers: processes that may write the RAM, such as QEMU.
        sockets: those of QEMU, which nobody but the manager is to reach.
        unseen: why QEMU may have others; empty where it has none.
        memory_bytes: how much memory of its own the process may take; None for any.
        look_s: longest look.
        triggers: what it looks for besides its interval.
        asks: other codepacks that a service may ask.
        caveats: what must be said with each alert.
        held_by: what keeps the process, as each alert tells.
        probe: whether only the first answer is wanted.
    """

    vm: str
    codepack: str
    entry: str
    interval_s: float
    address: str
    reads_registers: bool = True
    socket: str
    secret: str
    outbox_secret: str
    profiles: str
    memory: HandedMemory
    descriptors: tuple[int, ...]
    landlock: bool
    writers: tuple[int, ...]
    sockets: tuple[str, ...] = ()
    unseen: str = ""
    memory_bytes: int | None
    look_s: float
    caveats: tuple[str, ...]
    held_by: str = ""
    probe: bool = False
    code: int | None = None
    triggers: Triggers = NO_TRIGGERS
    asks: tuple[str, ...] = ()

    @property
    def inherited(self) -> tuple[int, ...]:
        """These are all descriptors that are handed over."""
        return self.descriptors if self.code is None else (*self.descriptors, self.code)


class Caveats(msgspec.Struct, frozen=True):
    """This is every further line: what must be said with each alert from now on."""

    caveats: tuple[str, ...]


class Hello(msgspec.Struct, frozen=True):
    """This is what the process answers before it runs any code of the codepack's.

    Args:
        pid: its process id.
        uid: who it is.
        ways_out: the ways that were tried and lead to writing guest RAM or to QEMU's own sockets, and those
            that could not be tried.
    """

    pid: int
    uid: int
    ways_out: tuple[str, ...]


def read_line(line: bytes, kind: type[Line]) -> Line:
    """This reads one line.

    Raises:
        BadMessage: it is none of that kind.
    """
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"a line that is no {kind.__name__}: {error}") from error
