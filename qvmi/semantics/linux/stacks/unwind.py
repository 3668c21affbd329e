"""What every way to unwind a kernel stack has in common: where it begins, its frames, reading a stack.

References: Linux arch/x86/include/asm/unwind.h (``unwind_state``), arch/x86/kernel/unwind_guess.c.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.modules.code import KernelCode
from qvmi.semantics.linux.stacks.stack_info import Stack
from qvmi.symbols.orc import OrcBase

__all__ = [
    "MAX_FRAMES",
    "Frame",
    "How",
    "Position",
    "StackEnd",
    "StackWords",
    "Unwound",
    "followed",
    "scanned",
]

MAX_FRAMES: Final = 1024
"""A stack of 16 KiB has no room for more of two words each; the kernel itself shows at most 64."""

_WORD: Final = Struct("<Q")
_KERNEL_HALF: Final = 1 << 63


class How(StrEnum):
    """This is how a frame was found, in the words of its row."""

    REGISTERS = "registers"
    SAVED = "saved"
    ORC = "orc"
    INTERRUPT_FRAME = "interrupt frame"
    FRAME_POINTER = "frame pointer"
    SCAN = "scan"
    USER_MODE = "user mode"


class Frame(NamedTuple):
    """This is one frame, without the names that belong to it.

    Args:
        pc: its instruction.
        exact: whether that is where it stands, not where a call returns to.
        how: it was found.
        reliable: whether it follows from the frames before.
        place: where its address was read; None for registers.
    """

    pc: Va
    exact: bool
    how: How
    reliable: bool
    place: Va | None


@dataclass(frozen=True, slots=True)
class Position:
    """This is where unwinding begins.

    Args:
        frame: of the instruction that the task stands at.
        sp: its stack pointer.
        fp: its frame pointer.
        registers: others that ORC may count from.
    """

    frame: Frame
    sp: int
    fp: int
    registers: Mapping[OrcBase, int] = field(default_factory=dict)


@dataclass(slots=True)
class Unwound:
    """This is what unwinding gave.

    Args:
        frames: the innermost first.
        problem: why there is no telling what called the last one; empty where nobody did.
        sp: where the stack has not been unwound any more.
    """

    frames: list[Frame] = field(default_factory=list)
    problem: str = ""
    sp: int = 0


class StackEnd(Exception):
    """Unwinding ends here: the text says why, and is empty where nobody has called the last frame."""


def followed(position: Position, callers: Iterator[tuple[Frame, int]]) -> Unwound:
    """This gathers the frames of a stack.

    Args:
        position: where unwinding begins.
        callers: the frames behind that, each with the stack pointer behind it; they end with
            StackEnd, or with MemoryFault.
    """
    result = Unwound([position.frame], sp=position.sp)
    try:
        for frame, sp in islice(callers, MAX_FRAMES):
            result.frames.append(frame)
            result.sp = sp
        result.problem = f"more than {MAX_FRAMES} frames"
    except StackEnd as end:
        result.problem = str(end)
    except MemoryFault as fault:
        result.problem = str(fault)
    return result


class StackWords:
    """This reads the stacks that a task may run on, and holds unwinding to them.

    Args:
        space: the kernel's address space.
        stacks: those that are known.
    """

    def __init__(self, space: AddressSpace, stacks: Sequence[Stack]) -> None:
        self._space = space
        self._stacks = stacks

    def holding(self, va: int) -> Stack | None:
        """This is the stack that an address is on, None where none is known."""
        return next((stack for stack in self._stacks if stack.holds(va)), None)

    def word(self, va: int) -> int:
        """This reads a word of a stack.

        Raises:
            MemoryFault: it is in no memory of the kernel's.
        """
        if not _KERNEL_HALF <= va < 1 << 64:
            raise MemoryFault(va, _WORD.size, kind="virtual", why="no stack of the kernel is there")
        found: int = _WORD.unpack(self._space.read(Va(va), _WORD.size))[0]
        return found

    def words(self, sp: int) -> Iterator[tuple[Va, int]]:
        """This iterates what lies from an address up to the end of its stack, with where."""
        stack = self.holding(sp)
        if stack is None:
            return
        start = Va(-(-sp // _WORD.size) * _WORD.size)
        try:
            data = self._space.read(start, stack.end - start)
        except MemoryFault:
            return
        for index, (word,) in enumerate(_WORD.iter_unpack(data)):
            yield Va(start + _WORD.size * index), word


def scanned(words: StackWords, sp: int, code: KernelCode) -> Iterator[Frame]:
    """These are the words on the rest of a stack that may be return addresses, none of them reliable.

    Raises:
        WalkFailed: the list of modules cannot be walked at all.
    """
    for place, word in words.words(sp):
        if word >= _KERNEL_HALF and code.is_text(Va(word)):
            yield Frame(Va(word), exact=False, how=How.SCAN, reliable=False, place=place)
