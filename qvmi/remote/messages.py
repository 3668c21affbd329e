"""What a codepack in another process may ask of the manager, and what it is told."""

from collections.abc import Iterable
from typing import Annotated, Final, Self

import msgspec

from qvmi.addr import Va
from qvmi.arch.aarch64 import Registers as Aarch64Registers
from qvmi.arch.registers import Registers
from qvmi.arch.x86_64 import Registers as X86Registers
from qvmi.errors import BadMessage
from qvmi.machine.facts import MachineFacts
from qvmi.machine.holding.breakpoints import Hit
from qvmi.qmp.commands import RunState
from qvmi.remote.refusal import Refusal
from qvmi.semantics.guest_os import Thread
from qvmi.view import Provenance

__all__ = [
    "LEASE_S",
    "MAX_HITS",
    "Answer",
    "AskFacts",
    "AskRunState",
    "AskSystem",
    "BeginPause",
    "EndLease",
    "FactsTold",
    "HitTold",
    "HitsTold",
    "KeepLease",
    "LeaseTold",
    "MachineState",
    "PauseTold",
    "Question",
    "ReadRegisters",
    "RegistersTold",
    "RunStateTold",
    "SetBreakpoint",
    "SystemRegistersTold",
    "TakeHits",
    "VcpusTold",
    "read_question",
]

LEASE_S: Final = 5.0
"""How long a pause or a breakpoint holds unless it is renewed; as long as the guardian waits for a
program that stands still."""

MAX_HITS: Final = 16
"""Hits in one answer: with two kilobytes of registers each they take half of a message."""

MAX_PLACE: Final = 1024
"""Letters of what people call a breakpoint's place: a symbol of a kernel has 511 at most, and an offset."""

_MOST_SHOWN: Final = 200
"""Letters of what is wrong with a question, which may repeat a part of it."""


class ReadRegisters(msgspec.Struct, frozen=True, tag="registers"):
    """This asks for the registers of all vCPUs; with those only the gdbstub tells, the guest is stopped."""

    system: bool = False


class AskSystem(msgspec.Struct, frozen=True, tag="system"):
    """This asks for what of the registers says which system runs; whoever may read memory may know it."""


class AskRunState(msgspec.Struct, frozen=True, tag="run-state"):
    """This asks whether the vCPUs run."""


class AskFacts(msgspec.Struct, frozen=True, tag="facts"):
    """This asks what QEMU says of the machine."""


class BeginPause(msgspec.Struct, frozen=True, tag="pause"):
    """This asks for the guest to stand still."""


class SetBreakpoint(msgspec.Struct, frozen=True, tag="breakpoint"):
    """This asks for a breakpoint.

    Args:
        place: what people call it.
        address: where it is.
        kind: see :class:`~qvmi.gdbstub.packets.BreakpointKind`; None for a software breakpoint.
        size: bytes, for a watchpoint.
    """

    place: Annotated[str, msgspec.Meta(max_length=MAX_PLACE)]
    address: Va
    kind: int | None = None
    size: int = 1


class TakeHits(msgspec.Struct, frozen=True, tag="hits"):
    """This asks for the hits of a breakpoint, waits for one if there is none, and renews the lease."""

    lease: str
    wait_s: float


class KeepLease(msgspec.Struct, frozen=True, tag="keep"):
    """This renews a lease."""

    lease: str


class EndLease(msgspec.Struct, frozen=True, tag="end"):
    """This ends a lease: the guest runs, or the breakpoint is gone, unless others hold it."""

    lease: str


Question = (
    ReadRegisters
    | AskSystem
    | AskRunState
    | AskFacts
    | BeginPause
    | SetBreakpoint
    | TakeHits
    | KeepLease
    | EndLease
)
"""Everything that can be asked; the field ``type`` tells which one it is."""


def read_question(body: dict[str, object]) -> Question:
    """This reads the body of a request.

    Raises:
        BadMessage: it is no question.
    """
    try:
        question: Question = msgspec.convert(body, Question)
    except msgspec.ValidationError as error:
        raise BadMessage(f"no question: {str(error)[:_MOST_SHOWN]}") from error
    return question


class VcpusTold(msgspec.Struct, frozen=True, omit_defaults=True):
    """These are vCPUs, of whichever architecture they are; the other list is empty."""

    x86_64: tuple[X86Registers, ...] = ()
    aarch64: tuple[Aarch64Registers, ...] = ()

    @classmethod
    def of(cls, vcpus: Iterable[Registers]) -> Self:
        """This sorts registers by architecture."""
        known = tuple(vcpus)
        return cls(
            tuple(one for one in known if isinstance(one, X86Registers)),
            tuple(one for one in known if isinstance(one, Aarch64Registers)),
        )

    @property
    def vcpus(self) -> tuple[Registers, ...]:
        """These are all of them; machines have one architecture."""
        return self.x86_64 or self.aarch64


class RegistersTold(msgspec.Struct, frozen=True):
    """This answers :class:`ReadRegisters` and :class:`AskSystem`."""

    vcpus: VcpusTold


class SystemRegistersTold(msgspec.Struct, frozen=True):
    """This answers :class:`ReadRegisters` for all of them, with how they were taken."""

    vcpus: VcpusTold
    provenance: Provenance


class RunStateTold(msgspec.Struct, frozen=True):
    """This answers :class:`AskRunState`."""

    state: RunState


class FactsTold(msgspec.Struct, frozen=True):
    """This answers :class:`AskFacts`."""

    facts: MachineFacts


class LeaseTold(msgspec.Struct, frozen=True):
    """This answers what begins, renews or ends a lease that is not one of a pause.

    Args:
        lease: names it from now on.
        lasts_s: how long it holds from the moment at which it was asked for.
    """

    lease: str
    lasts_s: float = LEASE_S


class PauseTold(msgspec.Struct, frozen=True):
    """This answers :class:`BeginPause`.

    Args:
        lease: names it from now on.
        ours: whether qvmi has stopped the guest; else its owner had before.
        at: when it began, seconds since the Unix epoch on the manager's clock.
        vcpus: what the vCPUs hold meanwhile.
        lasts_s: how long it holds from the moment at which it was asked for.
    """

    lease: str
    ours: bool
    at: float
    vcpus: VcpusTold
    lasts_s: float = LEASE_S


class HitTold(msgspec.Struct, frozen=True):
    """This is a hit; see :class:`~qvmi.machine.holding.breakpoints.Hit`."""

    address: Va
    registers: VcpusTold
    arguments: tuple[int, ...]
    task: Thread | None
    at: float

    @classmethod
    def of(cls, hit: Hit) -> Self:
        """This is the form of a hit."""
        told = VcpusTold.of([hit.registers])
        return cls(hit.address, told, hit.arguments, hit.task, hit.at)

    def hit(self, place: str) -> Hit:
        """This is the hit again, at what its consumer calls the place.

        Raises:
            BadMessage: it has not the registers of one vCPU.
        """
        if len(self.registers.vcpus) != 1:
            raise BadMessage(f"a hit of {len(self.registers.vcpus)} vCPUs")
        (vcpu,) = self.registers.vcpus
        return Hit(place, self.address, vcpu.index, vcpu, self.arguments, self.task, self.at)


class HitsTold(msgspec.Struct, frozen=True):
    """This answers :class:`TakeHits`.

    Args:
        hits: the next ones, at most MAX_HITS.
        seen: how many there were until now.
        dropped: how many of them nobody took in time.
    """

    hits: tuple[HitTold, ...]
    seen: int
    dropped: int


class MachineState(msgspec.Struct, frozen=True):
    """This is what whoever holds a view of the machine must know: it comes with each answer and by itself.

    Args:
        epoch: counts resets.
        gone: whether QEMU has ended.
    """

    epoch: int
    gone: bool = False


class Answer(msgspec.Struct, frozen=True):
    """This is the body of a reply.

    Args:
        state: of the machine.
        told: what was asked for; empty where it was refused.
        refusal: why it was.
    """

    state: MachineState
    told: dict[str, object] = {}
    refusal: Refusal | None = None
