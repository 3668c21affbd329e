"""The whole tree of errors that qvmi raises.

::

    QvmiError
    ├── UsageError                    an argument that cannot be right, with the way out
    ├── AttachError                   no session with the machine could be had
    │   ├── SocketUnreachable         nothing listens there
    │   ├── NotQmp                    something listens, but it does not speak QMP
    │   ├── QmpBusy                   another client holds the one QMP session
    │   ├── NotGdbstub                something listens, but it speaks no remote serial protocol
    │   ├── GdbstubBusy               another debugger holds the stub
    │   ├── NotADump                  the file is no dump that can be read; says what it looks like
    │   └── MemoryUnreachable         no way to the guest's RAM; says what was tried and the fix
    ├── MachineGone                   QEMU ended or closed the session
    ├── QmpCommandFailed              QEMU refused a command
    ├── QmpTimeout                    QEMU did not answer in time
    ├── QmpProtocolError              QEMU's answer has not the documented form
    ├── GdbstubRequestFailed          the gdbstub refused a request
    ├── GdbstubTimeout                the gdbstub did not answer in time
    ├── GdbstubProtocolError          the gdbstub's answer has not the documented form
    ├── GdbError                      gdb, the program, ended or cannot be talked to
    │   ├── GdbCommandFailed          gdb refused a command
    │   └── GdbTimeout                a command of gdb's took too long, and was broken off
    ├── GuestRunning                  only a stopped guest can be asked that; someone lets it run
    ├── MemoryFault                   guest memory that cannot be read
    │   └── TranslationFault          a virtual address that no page table maps
    ├── SymbolsError                  names and layouts
    │   ├── SymbolNotFound
    │   ├── LayoutNotFound
    │   └── CorruptTable              kallsyms, BTF, ISF or profile bytes that contradict themselves
    ├── GuestError                    what runs in the guest
    │   ├── UnknownGuest              no operating system was recognised; lists the evidence
    │   ├── WalkFailed                a guest structure that could not be walked at all
    │   ├── NotAnswered               a question that is not answered of this system; with the way out
    │   └── PluginFailed              a Volatility plugin that failed, by itself or over this guest
    ├── PauseError                    the guest cannot be stopped, or not for as short as promised
    ├── NotWritable                   guest memory that must not be written; nothing was changed
    ├── WriteFailed                   a change of the guest that did not come about as asked
    ├── NotDirect                     memory is not direct: use ``query``
    ├── QueryTimeout                  a query did not end in the time it was given
    ├── ScanFailed                    a scan of memory that came to no end
    ├── StaleView                     the guest was reset or replaced since the view was taken
    ├── PolicyDenied                  an action without its grant
    ├── AuditFailed                   the audit log cannot be written or read: nothing was done
    ├── AuditBroken                   the audit log is not as it was written
    ├── BusError                      the channel between codepacks
    │   ├── BrokerUnavailable         no broker could be started or reached
    │   ├── BusRefused                the broker refused what was asked
    │   ├── BadMessage                bytes on the bus that are no message of ours
    │   ├── LedgerFailed              a database of messages that cannot be used
    │   └── OutboxFull                too many messages wait for consumers that are not there
    └── CodepackError                 a codepack that cannot be loaded or has failed
"""

from collections.abc import Mapping, Sequence

from qvmi.addr import Pa, Va

__all__ = [
    "AttachError",
    "AuditBroken",
    "AuditFailed",
    "BadMessage",
    "BrokerUnavailable",
    "BusError",
    "BusRefused",
    "CodepackError",
    "CorruptTable",
    "GdbCommandFailed",
    "GdbError",
    "GdbTimeout",
    "GdbstubBusy",
    "GdbstubProtocolError",
    "GdbstubRequestFailed",
    "GdbstubTimeout",
    "GuestError",
    "GuestRunning",
    "LayoutNotFound",
    "LedgerFailed",
    "MachineGone",
    "MemoryFault",
    "MemoryUnreachable",
    "NotADump",
    "NotAnswered",
    "NotDirect",
    "NotGdbstub",
    "NotQmp",
    "NotWritable",
    "OutboxFull",
    "PauseError",
    "PluginFailed",
    "PolicyDenied",
    "QmpBusy",
    "QmpCommandFailed",
    "QmpProtocolError",
    "QmpTimeout",
    "QueryTimeout",
    "QvmiError",
    "ScanFailed",
    "SocketUnreachable",
    "StaleView",
    "SymbolNotFound",
    "SymbolsError",
    "TranslationFault",
    "UnknownGuest",
    "UsageError",
    "WalkFailed",
    "WriteFailed",
]


class QvmiError(Exception):
    """This is the base of every error that qvmi raises on purpose."""


class UsageError(QvmiError):
    """This argument cannot be right; the message names the value and the way out."""


class AttachError(QvmiError):
    """This machine could not be attached to.

    Attributes:
        target: the address that was tried, as the user gave it.
    """

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason


class SocketUnreachable(AttachError):
    """Nothing listens at this address, or it may not be opened."""


class NotQmp(AttachError):
    """Something listens at this address, but its first bytes are no QMP greeting."""


class QmpBusy(AttachError):
    """Another client holds this QMP socket, which serves one client at a time."""


class NotGdbstub(AttachError):
    """Something listens at this address, but it does not speak GDB's remote serial protocol."""


class GdbstubBusy(AttachError):
    """Another debugger holds this gdbstub, which serves one client at a time."""


class NotADump(AttachError):
    """This file holds no memory in a form that is understood, or contradicts itself."""


class MemoryUnreachable(AttachError):
    """The guest's RAM cannot be read in any way that was tried.

    Attributes:
        attempts: one line for each way that was tried, with the reason it failed and the fix.
    """

    def __init__(self, target: str, attempts: Sequence[str]) -> None:
        super().__init__(target, "no way to the guest's memory: " + "; ".join(attempts))
        self.attempts = tuple(attempts)


class MachineGone(QvmiError):
    """QEMU has ended, or it closed the session, while something was asked of it."""

    def __init__(self, doing: str) -> None:
        super().__init__(f"QEMU is gone (while doing: {doing})")
        self.doing = doing


class QmpCommandFailed(QvmiError):
    """QEMU refused this command.

    Attributes:
        command: the QMP command, or the monitor line.
        error_class: QMP's error class, such as ``GenericError``.
        description: QEMU's own words.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.description = description


class QmpTimeout(QvmiError):
    """QEMU did not answer this command in time."""

    def __init__(self, command: str, timeout_s: float) -> None:
        super().__init__(f"{command}: no answer from QEMU within {timeout_s:g} s")
        self.command = command
        self.timeout_s = timeout_s


class QmpProtocolError(QvmiError):
    """This answer of QEMU has not the documented form."""

    def __init__(self, command: str, problem: str) -> None:
        super().__init__(f"{command}: {problem}")
        self.command = command
        self.problem = problem


class GdbstubRequestFailed(QvmiError):
    """The gdbstub refused this request.

    Attributes:
        request: the packet's body, shortened.
        code: the stub's answer, such as ``E22``; None where it does not know the request at all.
    """

    def __init__(self, request: str, code: str | None) -> None:
        said = "not supported by this QEMU" if code is None else f"refused with {code}"
        super().__init__(f"gdbstub request {request!r}: {said}")
        self.request = request
        self.code = code


class GdbstubTimeout(QvmiError):
    """The gdbstub did not answer this request in time."""

    def __init__(self, request: str, timeout_s: float) -> None:
        super().__init__(f"gdbstub request {request!r}: no answer within {timeout_s:g} s")
        self.request = request
        self.timeout_s = timeout_s


class GdbstubProtocolError(QvmiError):
    """This answer of the gdbstub has not the documented form."""

    def __init__(self, request: str, problem: str) -> None:
        super().__init__(f"gdbstub, {request}: {problem}")
        self.request = request
        self.problem = problem


class GdbError(QvmiError):
    """The program gdb cannot be started, has ended, or says what nobody understands."""


class GdbCommandFailed(GdbError):
    """gdb refused this command.

    Attributes:
        command: as it was given.
        reason: gdb's own words.
    """

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"gdb, {command!r}: {reason}")
        self.command = command
        self.reason = reason


class GdbTimeout(GdbError):
    """This command of gdb's did not end in time, and was broken off."""

    def __init__(self, command: str, timeout_s: float) -> None:
        super().__init__(f"gdb, {command!r}: not done within {timeout_s:g} s")
        self.command = command
        self.timeout_s = timeout_s


class GuestRunning(QvmiError):
    """The guest runs, and what was asked can only be answered while it stands still.

    Attributes:
        doing: what was asked.
    """

    def __init__(self, doing: str, why: str) -> None:
        super().__init__(f"{doing}: {why}")
        self.doing = doing


class MemoryFault(QvmiError):
    """These guest bytes cannot be read.

    Attributes:
        address: the first address that cannot be read.
        size: bytes asked for.
        kind: ``physical`` or ``virtual``.
    """

    def __init__(self, address: int, size: int, *, kind: str = "physical", why: str = "") -> None:
        detail = f": {why}" if why else ""
        super().__init__(f"cannot read {size} bytes at {kind} address {address:#x}{detail}")
        self.address = address
        self.size = size
        self.kind = kind


class TranslationFault(MemoryFault):
    """No page table maps this virtual address.

    Attributes:
        level: the paging structure whose entry stopped the walk, such as ``PDE``; empty for an
            address that is not canonical.
        entry: the entry's value, None where there is none.
        table: the entry's physical address, None where there is none.
    """

    def __init__(
        self,
        va: Va,
        *,
        level: str = "",
        entry: int | None = None,
        table: Pa | None = None,
        why: str,
    ) -> None:
        super().__init__(va, 1, kind="virtual", why=why)
        # What failed is the translation: how much was to be read there a walk does not know.
        self.args = (f"cannot translate virtual address {va:#x}: {why}",)
        self.level = level
        self.entry = entry
        self.table = table


class SymbolsError(QvmiError):
    """This is the base of what can go wrong with names and layouts."""


class SymbolNotFound(SymbolsError):
    """The kernel has no symbol of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no symbol {name!r} in this kernel")
        self.name = name


class LayoutNotFound(SymbolsError):
    """The kernel has no type, or the type no field, of this name."""

    def __init__(self, type_name: str, field: str | None = None) -> None:
        what = f"{type_name}.{field}" if field else type_name
        super().__init__(f"no {'field' if field else 'type'} {what!r} in this kernel's types")
        self.type_name = type_name
        self.field = field


class CorruptTable(SymbolsError):
    """This table contradicts itself.

    Attributes:
        table: which table, such as ``BTF`` or ``kallsyms_names``.
        problem: what is wrong, with the values.
    """

    def __init__(self, table: str, problem: str) -> None:
        super().__init__(f"{table}: {problem}")
        self.table = table
        self.problem = problem


class GuestError(QvmiError):
    """This is the base of what can be wrong with the software in the guest."""


class UnknownGuest(GuestError):
    """No operating system was recognised in this guest.

    Attributes:
        evidence: what was looked at and found, one line each.
    """

    def __init__(self, reason: str, evidence: Sequence[str] = ()) -> None:
        lines = "".join(f"\n  - {line}" for line in evidence)
        super().__init__(f"{reason}{lines}")
        self.reason = reason
        self.evidence = tuple(evidence)


class WalkFailed(GuestError):
    """This guest structure could not be walked, so there is no listing at all.

    Attributes:
        structure: its name, such as ``init_task.tasks``.
        problem: what stopped the walk.
    """

    def __init__(self, structure: str, problem: str) -> None:
        super().__init__(f"cannot walk {structure}: {problem}")
        self.structure = structure
        self.problem = problem


class NotAnswered(GuestError):
    """This question is not answered of the system that runs in this guest.

    Attributes:
        question: that was asked.
        system: that runs there.
        way_out: what answers it instead.
    """

    def __init__(self, question: str, system: str, way_out: str) -> None:
        super().__init__(f"{question} is not answered of {system}: {way_out}")
        self.question = question
        self.system = system
        self.way_out = way_out


class PluginFailed(GuestError):
    """This Volatility plugin failed, by itself or over what this guest holds.

    Attributes:
        plugin: its name.
        problem: what it failed with, in its own words.
    """

    def __init__(self, plugin: str, problem: str) -> None:
        super().__init__(f"{plugin} failed: {problem}")
        self.plugin = plugin
        self.problem = problem


class PauseError(QvmiError):
    """The guest cannot be stopped safely, or not for as short a time as was promised."""


class NotWritable(QvmiError):
    """These guest bytes must not be written; nothing was changed.

    Attributes:
        address: the first address that must not be written.
        size: bytes to be written there.
        kind: ``physical`` or ``virtual``.
    """

    def __init__(self, address: int, size: int, *, kind: str, why: str) -> None:
        super().__init__(f"cannot write {size} bytes at {kind} address {address:#x}: {why}")
        self.address = address
        self.size = size
        self.kind = kind


class WriteFailed(QvmiError):
    """This change of the guest did not come about as it was asked for.

    Attributes:
        doing: what was written, and where.
        wanted: the bytes, or the values by register, that were written.
        found: what was there when it was read back; None where that failed too.
        restored: whether what was there before is there again.
    """

    def __init__(
        self,
        doing: str,
        wanted: bytes | Mapping[str, int],
        found: bytes | Mapping[str, int] | None,
        *,
        restored: bool,
    ) -> None:
        read = "nothing can be read back" if found is None else f"{_shown(found)} is read back"
        state = "what was there before is there again" if restored else "it was left so"
        super().__init__(f"{doing}: wrote {_shown(wanted)}, {read}; {state}")
        self.doing = doing
        self.wanted = wanted
        self.found = found
        self.restored = restored


class NotDirect(QvmiError):
    """The guest's memory is not direct, so it cannot be read on the event loop."""


class QueryTimeout(QvmiError):
    """What was asked of the guest did not end in the time it was given."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the query did not end within {timeout_s:g} s")
        self.timeout_s = timeout_s


class ScanFailed(QvmiError):
    """A scan of guest memory that came to no end."""


class StaleView(QvmiError):
    """The guest was reset, or its kernel replaced, after this view was taken."""


class PolicyDenied(QvmiError):
    """This action needs a grant that the session was not opened with."""

    def __init__(self, action: str, grant: str) -> None:
        super().__init__(f"{action}: not granted (needs grant {grant!r})")
        self.action = action
        self.grant = grant


class AuditFailed(QvmiError):
    """This audit log cannot be written or read, so that nothing is done that it had to tell of."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"audit log {path}: {problem}")
        self.path = path
        self.problem = problem


class AuditBroken(QvmiError):
    """This audit log is not as it was written; what is behind this line proves nothing."""

    def __init__(self, path: object, line: int, problem: str) -> None:
        super().__init__(f"audit log {path}, line {line}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


class BusError(QvmiError):
    """This is the base of what can go wrong on the channel between codepacks."""


class BrokerUnavailable(BusError):
    """No broker could be started or reached; the message says what to install or to use."""


class BusRefused(BusError):
    """The broker refused this publish or subscription."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic}: refused by the broker: {reason}")
        self.topic = topic
        self.reason = reason


class BadMessage(BusError):
    """These bytes are not a message of this version of qvmi."""


class LedgerFailed(BusError):
    """This database of messages cannot be used; the message says why."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class OutboxFull(BusError):
    """So many messages wait for consumers that are not there that no more are taken."""


class CodepackError(QvmiError):
    """This codepack cannot be loaded, or it failed."""

    def __init__(self, codepack: str, problem: str) -> None:
        super().__init__(f"codepack {codepack}: {problem}")
        self.codepack = codepack
        self.problem = problem


_MOST_SHOWN = 32
"""Bytes shown in a message; the attributes have them all."""


def _shown(value: bytes | Mapping[str, int]) -> str:
    """This is a value as messages show it."""
    if not isinstance(value, bytes):
        return ", ".join(f"{name}={number:#x}" for name, number in value.items())
    return value[:_MOST_SHOWN].hex() + ("…" if len(value) > _MOST_SHOWN else "")
