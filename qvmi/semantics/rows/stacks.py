"""Rows about kernel stacks."""

import msgspec

from qvmi.addr import Va

__all__ = ["StackFrame"]


class StackFrame(msgspec.Struct, frozen=True, gc=False):
    """This is one frame of a task's kernel stack.

    Args:
        pid: of the task: a thread's own id.
        number: 0 for where the task stands, 1 for its caller, and so on.
        address: the instruction; of a caller the one to return to, as ``/proc/PID/stack`` tells it.
        symbol: the function that is in; empty where nobody has named it.
        offset: bytes from the symbol.
        module: that the symbol is of; empty for the kernel itself.
        reliable: whether it follows from the frames before it alone. If not, it may be one that
            has returned long ago.
        how: it was found: ``registers`` of a vCPU, ``saved`` when the task went to sleep, ``orc``,
            ``interrupt frame``, ``frame pointer``, or ``scan``: a word that may be a return address.
            ``user mode``: the task is not in the kernel, and this is where its program stands.
        place: where in memory the address was read; None for registers.
    """

    pid: int
    number: int
    address: Va
    symbol: str
    offset: int
    module: str
    reliable: bool
    how: str
    place: Va | None
