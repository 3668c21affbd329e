"""What a packet of a debugger's asks for, and what of it may be done: a body in, a verdict out, without I/O.

References: GDB manual, "Packets", "General Query Packets", "vCont Packets"; QEMU ``gdbstub.c``:

- ``k`` and ``vKill`` end QEMU, ``vRun`` and ``R`` would start it anew, ``qRcmd`` is its whole monitor:
  none of them is ever handed on.
- ``?`` removes all breakpoints, ``D`` lets the guest run, ``H`` chooses a vCPU for everybody,
  ``qfThreadInfo`` has one place in the list for everybody: those are answered here.
- ``Qqemu.PhyMemMode`` and multiprocess mode stick, also for the next client: the one is kept for each
  client here, the other is on upstream, and each client hears of threads in the form that it knows.
- ``vMustReplyEmpty`` is gdb's: it gives up where anything is answered, and shows what that was. What is
  answered to ``?`` it shows nobody, and waits for more.

What is not named here gets the answer that the protocol has for unknown packets.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qvmi.gdbstub.packets import BreakpointKind, ThreadId
from qvmi.policy import Grant

__all__ = [
    "MAX_READ",
    "PACKET_SIZE",
    "Ask",
    "Begin",
    "Break",
    "Current",
    "Introduce",
    "Leave",
    "List",
    "Locate",
    "Read",
    "Refuse",
    "Run",
    "Say",
    "Select",
    "Verdict",
    "WhyStopped",
    "Write",
    "console",
    "judge",
]

PACKET_SIZE: Final = 0x1000
"""The longest packet that clients are told to send, in bytes: as QEMU 7.2 tells them."""
MAX_READ: Final = PACKET_SIZE // 2
"""The most memory one packet brings, in bytes: two digits each."""

MALFORMED: Final = b"E22"


@dataclass(frozen=True, slots=True)
class Say:
    """This is answered at once, whatever the guest does.

    Args:
        answer: the answer.
        printed: what is shown to people before it.
    """

    answer: bytes
    printed: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """This wants an empty answer; else it is told here why it will not be shown the guest."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """This is not done.

    Args:
        why: in words, for the audit log.
        answers: what is said; several packets where the last one stands behind words for people.
    """

    why: str
    answers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Introduce:
    """This tells what the client can do; it is told what is offered.

    Args:
        multiprocess: it names processes with its threads.
    """

    multiprocess: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """This lets go of the guest.

    Args:
        answered: whether the client waits for an answer.
    """

    answered: bool = True


@dataclass(frozen=True, slots=True)
class WhyStopped:
    """This asks why the guest stands still, which begins a session."""


@dataclass(frozen=True, slots=True)
class Current:
    """This asks for the first vCPU."""


@dataclass(frozen=True, slots=True)
class List:
    """This asks for the next part of the list of vCPUs."""

    first: bool


@dataclass(frozen=True, slots=True)
class Select:
    """This chooses a vCPU for what this client says next, or asks whether it is there.

    Args:
        kept: it is chosen.
    """

    thread: ThreadId
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """This is sent on as it was written anew; the guest stands still, and the vCPU is chosen before."""

    request: bytes


@dataclass(frozen=True, slots=True)
class Locate:
    """This says what addresses mean in what this client says next.

    Args:
        physical: the guest's physical addresses; else the chosen vCPU's.
    """

    physical: bool


@dataclass(frozen=True, slots=True)
class Read:
    """This reads memory at the chosen vCPU's addresses, or at physical ones."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Write:
    """This writes memory at the chosen vCPU's addresses, or at physical ones."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """This inserts or removes a breakpoint or watchpoint."""

    kind: BreakpointKind
    address: int
    size: int
    insert: bool


@dataclass(frozen=True, slots=True)
class Run:
    """This lets the guest run until there is something to tell.

    Args:
        step: the vCPU that is to do one instruction; None for none. 0 stands for the chosen one.
        others: the other vCPUs run meanwhile.
    """

    step: ThreadId | None = None
    others: bool = True


Verdict = (
    Say
    | Refuse
    | Begin
    | Locate
    | Introduce
    | Leave
    | WhyStopped
    | Current
    | List
    | Select
    | Ask
    | Read
    | Write
    | Break
    | Run
)

_NUMBER: Final = rb"([0-9a-fA-F]{1,16})"
_THREAD: Final = rb"(?:p(-1|[0-9a-fA-F]{1,8})\.)?(-1|[0-9a-fA-F]{1,8})"
_ANY: Final = ThreadId(0)


def _thread(process: bytes | None, thread: bytes) -> ThreadId:
    return ThreadId(int(thread, 16), None if process is None else int(process, 16))


def _read(match: re.Match[bytes]) -> Verdict:
    size = int(match[2], 16)
    address = int(match[1], 16)
    if not 0 < size <= MAX_READ or address + size > 1 << 64:
        return Say(MALFORMED)
    return Read(address, size)


def _write(match: re.Match[bytes]) -> Verdict:
    data = match[3] if match[0][:1] == b"X" else _unhexed(match[3])
    address, size = int(match[1], 16), int(match[2], 16)
    if data is None or len(data) != size or size > MAX_READ or address + size > 1 << 64:
        return Say(MALFORMED)
    return Write(address, data)


def _unhexed(digits: bytes) -> bytes | None:
    even = len(digits) % 2 == 0 and re.fullmatch(rb"[0-9a-fA-F]*", digits)
    return bytes.fromhex(digits.decode()) if even else None


def _broken(match: re.Match[bytes]) -> Verdict:
    kind = BreakpointKind(int(match[2]))
    return Break(kind, int(match[3], 16), int(match[4], 16), insert=match[1] == b"Z")


_ACTION: Final = re.compile(rb"([cCsS])([0-9a-fA-F]{2})?(?::" + _THREAD + rb")?")
_MOST_ACTIONS: Final = 64
"""gdb sends two; a list may name each vCPU."""


def _resumed(match: re.Match[bytes]) -> Verdict:
    """This reads the actions of ``vCont``: the first that steps counts, as gdb steps one vCPU at a time."""
    words = match[1].split(b";")
    actions = [_ACTION.fullmatch(word) for word in words[:_MOST_ACTIONS]]
    step: ThreadId | None = None
    others = False
    for action in actions:
        if action is None or len(words) > _MOST_ACTIONS:
            return Say(MALFORMED)
        thread = _ANY if action[4] is None else _thread(action[3], action[4])
        if action[1] in b"sS" and step is None:
            step = thread if thread.thread > 0 else _ANY
        elif action[1] in b"cC":
            others = True
    return Run(step, others or step is None)


def _ran(match: re.Match[bytes]) -> Verdict:
    return Run(_ANY if match[0][:1] in b"sS" else None, others=match[0][:1] in b"cC")


def _selected(match: re.Match[bytes]) -> Verdict:
    return Select(_thread(match[2], match[3]), kept=match[1] == b"g")


def _monitor(_: re.Match[bytes]) -> Verdict:
    return Refuse(
        "QEMU's monitor",
        (console("not granted: QEMU's monitor is not to be had through a gateway\n"), b"OK"),
    )


def console(words: str) -> bytes:
    """This is what a debugger shows to people."""
    return b"O" + words.encode().hex().encode()


def _said(answer: bytes) -> Callable[[re.Match[bytes]], Verdict]:
    return lambda _: Say(answer)


def _refused(why: str, answer: bytes = b"") -> Callable[[re.Match[bytes]], Verdict]:
    return lambda _: Refuse(why, (answer,))


def _asked(match: re.Match[bytes]) -> Verdict:
    return Ask(match[0])


# A debugger concludes from QEMU's release whether the stub tells that it has stopped the guest. A
# gateway does not, whatever the release: so it names none.
_NO_VERSION: Final = "a gateway of qvmi's: it does not tell whether the guest ran\n"

_Rule = tuple[re.Pattern[bytes], Grant | None, Callable[[re.Match[bytes]], Verdict]]


def _rule(
    pattern: bytes, grant: Grant | None, verdict: Callable[[re.Match[bytes]], Verdict]
) -> _Rule:
    return re.compile(pattern, re.DOTALL), grant, verdict


RULES: Final[tuple[_Rule, ...]] = (
    _rule(rb"qSupported(?::.*)?", None, lambda m: Introduce(b"multiprocess+" in m[0])),
    _rule(rb"vMustReplyEmpty", None, lambda _: Begin()),
    _rule(rb"qAttached(?::[0-9a-fA-F]{1,8})?", None, _said(b"1")),
    _rule(rb"qSymbol::", None, _said(b"OK")),
    _rule(rb"D(?:;[0-9a-fA-F]{1,8})?|vKill;.*", None, lambda _: Leave()),
    _rule(rb"k", None, lambda _: Leave(answered=False)),
    _rule(rb"\?", Grant.READ_REGISTERS, lambda _: WhyStopped()),
    _rule(rb"q([fs])ThreadInfo", Grant.READ_REGISTERS, lambda m: List(first=m[1] == b"f")),
    _rule(rb"H([gc])" + _THREAD, None, _selected),
    _rule(
        rb"T" + _THREAD,
        Grant.READ_REGISTERS,
        lambda m: Select(_thread(m[1], m[2]), kept=False),
    ),
    _rule(rb"qThreadExtraInfo," + _THREAD, Grant.READ_REGISTERS, _asked),
    _rule(
        rb"qXfer:features:read:[\w.-]{1,64}:[0-9a-fA-F]{1,8},[0-9a-fA-F]{1,4}",
        Grant.READ_REGISTERS,
        _asked,
    ),
    _rule(rb"qC", Grant.READ_REGISTERS, lambda _: Current()),
    _rule(rb"g|p[0-9a-fA-F]{1,8}", Grant.READ_REGISTERS, _asked),
    _rule(rb"m" + _NUMBER + rb"," + _NUMBER, Grant.READ_MEMORY, _read),
    _rule(rb"[MX]" + _NUMBER + rb"," + _NUMBER + rb":(.*)", Grant.WRITE, _write),
    _rule(rb"G(?:[0-9a-fA-F]{2}){1,2048}", Grant.WRITE, _asked),
    _rule(rb"P[0-9a-fA-F]{1,8}=(?:[0-9a-fA-F]{2}){1,64}", Grant.WRITE, _asked),
    _rule(rb"([Zz])([0-4])," + _NUMBER + rb",([0-9a-fA-F]{1,4})", Grant.BREAKPOINT, _broken),
    _rule(rb"vCont\?", None, _said(b"vCont;c;C;s;S")),
    _rule(rb"vCont;(.*)", Grant.PAUSE, _resumed),
    _rule(rb"[cs]|[CS][0-9a-fA-F]{2}", Grant.PAUSE, _ran),
    _rule(rb"qRcmd,696e666f2076657273696f6e", None, lambda _: Say(b"OK", _NO_VERSION)),
    _rule(rb"qRcmd,.*", None, _monitor),
    _rule(rb"Qqemu\.PhyMemMode:([01])", None, lambda m: Locate(m[1] == b"1")),
    _rule(rb"[Qq]qemu\..*", None, _refused("a setting of the stub's")),
    _rule(rb"vRun.*|vAttach.*|R.*|r", None, _refused("starting QEMU anew")),
)
"""Every packet that is known, what it needs, and what it means; the first that fits counts."""

_WRITES: Final = re.compile(rb"[GMPXZzcsCS].*", re.DOTALL)
"""What is answered with an error and not as unknown where it is malformed: gdb would try another form."""


def judge(body: bytes) -> tuple[Grant | None, Verdict]:
    """This says what a packet means and what it needs; who holds that grant is for others to say."""
    for pattern, grant, verdict in RULES:
        match = pattern.fullmatch(body)
        if match is not None:
            return grant, verdict(match)
    return None, Say(MALFORMED if _WRITES.fullmatch(body) else b"")
