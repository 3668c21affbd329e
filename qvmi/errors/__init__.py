"""The whole tree of errors that qvmi raises.

::

    QvmiError
    ├── UsageError                    an argument that cannot be right, with the way out
    │   └── BadSettings               a policy or manifest that cannot be right; says where
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
    ├── DiskError                     a virtual disk
    │   ├── DiskRefused               one that is not in files that are read, such as a device of the host
    │   ├── NoSuchFile                nothing of that name is on it
    │   └── CorruptDisk               what is on it contradicts itself, or changes while it is read
    ├── CorruptCapture                what was captured of a network card is no capture
    ├── PauseError                    the guest cannot be stopped, or not for as short as promised
    ├── NotWritable                   guest memory that must not be written; nothing was changed
    ├── WriteFailed                   a change of the guest that did not come about as asked
    ├── NotDirect                     memory is not direct: use ``query``
    ├── QueryTimeout                  a query did not end in the time it was given
    ├── ScanFailed                    a scan of memory that came to no end
    ├── StaleView                     the guest was reset or replaced since the view was taken
    ├── StepRefused                   a step of a response has nothing to be taken at, or not what was meant
    ├── IsolationNotProven            the watched machine may have a way to the bus: nothing is started
    ├── PolicyDenied                  an action without its grant
    ├── AuditFailed                   the audit log cannot be written or read: nothing was done
    ├── AuditBroken                   the audit log is not as it was written
    ├── BusError                      the channel between codepacks
    │   ├── BrokerUnavailable         no broker could be started or reached
    │   ├── BusRefused                the broker refused what was asked
    │   ├── IsolationRefused          no network for the bus that the user VM cannot reach; says why
    │   ├── BusNetworkFailed          a command that makes that network failed
    │   ├── BadMessage                bytes on the bus that are no message of ours
    │   ├── LedgerFailed              a database of messages that cannot be used
    │   ├── OutboxFull                too many messages wait in an outbox for receipts of its consumers
    │   ├── InboxFull                 too many messages of one speaker wait at a consumer
    │   └── RequestTimeout            a request that nobody answered in time
    └── CodepackError                 a codepack that cannot be loaded or has failed
        └── CodepackRefused           one that is unsigned, altered, or not what it says it is
"""

from qvmi.errors.actions import (
    AuditBroken,
    AuditFailed,
    GuestRunning,
    IsolationNotProven,
    NotDirect,
    NotWritable,
    PauseError,
    PolicyDenied,
    QueryTimeout,
    ScanFailed,
    StaleView,
    StepRefused,
    WriteFailed,
)
from qvmi.errors.base import (
    BadSettings,
    QvmiError,
    UsageError,
)
from qvmi.errors.channel import (
    BadMessage,
    BrokerUnavailable,
    BusError,
    BusNetworkFailed,
    BusRefused,
    CodepackError,
    CodepackRefused,
    InboxFull,
    IsolationRefused,
    LedgerFailed,
    OutboxFull,
    RequestTimeout,
)
from qvmi.errors.disks import CorruptCapture, CorruptDisk, DiskError, DiskRefused, NoSuchFile
from qvmi.errors.guests import (
    CorruptTable,
    GuestError,
    LayoutNotFound,
    MemoryFault,
    NotAnswered,
    PluginFailed,
    SymbolNotFound,
    SymbolsError,
    TranslationFault,
    UnknownGuest,
    WalkFailed,
)
from qvmi.errors.sessions import (
    AttachError,
    GdbCommandFailed,
    GdbError,
    GdbstubBusy,
    GdbstubProtocolError,
    GdbstubRequestFailed,
    GdbstubTimeout,
    GdbTimeout,
    MachineGone,
    MemoryUnreachable,
    NotADump,
    NotGdbstub,
    NotQmp,
    QmpBusy,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    SocketUnreachable,
)

__all__ = [
    "AttachError",
    "AuditBroken",
    "AuditFailed",
    "BadMessage",
    "BadSettings",
    "BrokerUnavailable",
    "BusError",
    "BusNetworkFailed",
    "BusRefused",
    "CodepackError",
    "CodepackRefused",
    "CorruptCapture",
    "CorruptDisk",
    "CorruptTable",
    "DiskError",
    "DiskRefused",
    "GdbCommandFailed",
    "GdbError",
    "GdbTimeout",
    "GdbstubBusy",
    "GdbstubProtocolError",
    "GdbstubRequestFailed",
    "GdbstubTimeout",
    "GuestError",
    "GuestRunning",
    "InboxFull",
    "IsolationNotProven",
    "IsolationRefused",
    "LayoutNotFound",
    "LedgerFailed",
    "MachineGone",
    "MemoryFault",
    "MemoryUnreachable",
    "NoSuchFile",
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
    "RequestTimeout",
    "ScanFailed",
    "SocketUnreachable",
    "StaleView",
    "StepRefused",
    "SymbolNotFound",
    "SymbolsError",
    "TranslationFault",
    "UnknownGuest",
    "UsageError",
    "WalkFailed",
    "WriteFailed",
]
