"""qvmi watches a QEMU virtual machine from outside: which Linux runs there and what runs in it."""

import importlib

TYPE_CHECKING = False  # type checkers take it for typing's, whose import would cost 10 ms
if TYPE_CHECKING:
    from qvmi.addr import Pa, Va
    from qvmi.codepacks.alert import Alert
    from qvmi.codepacks.codepack import Codepack, Finding
    from qvmi.errors import (
        AttachError,
        BusError,
        CodepackError,
        GuestError,
        MachineGone,
        MemoryFault,
        PolicyDenied,
        QvmiError,
        StaleView,
        SymbolsError,
        UnknownGuest,
        UsageError,
    )
    from qvmi.gdbstub.packets import BreakpointKind
    from qvmi.machine.attach import SyncMachine, attach, attach_sync
    from qvmi.machine.dump import Dump
    from qvmi.machine.facts import MachineFacts
    from qvmi.machine.holding.breakpoints import Hit, HitStream
    from qvmi.machine.machine import Machine
    from qvmi.machine.memory_dump import open_dump
    from qvmi.policy import Grant, Policy
    from qvmi.semantics.guest_os import (
        Evidence,
        Gap,
        GuestFacts,
        GuestOS,
        Listing,
        Module,
        Process,
        Thread,
    )
    from qvmi.view import Provenance, Taken, View

__version__ = "0.1.0"

_HOMES = {
    "attach": "qvmi.machine.attach",
    "attach_sync": "qvmi.machine.attach",
    "open_dump": "qvmi.machine.memory_dump",
    "Machine": "qvmi.machine.machine",
    "SyncMachine": "qvmi.machine.attach",
    "MachineFacts": "qvmi.machine.facts",
    "Dump": "qvmi.machine.dump",
    "HitStream": "qvmi.machine.holding.breakpoints",
    "Hit": "qvmi.machine.holding.breakpoints",
    "BreakpointKind": "qvmi.gdbstub.packets",
    "GuestOS": "qvmi.semantics.guest_os",
    "GuestFacts": "qvmi.semantics.guest_os",
    "Listing": "qvmi.semantics.guest_os",
    "Process": "qvmi.semantics.guest_os",
    "Thread": "qvmi.semantics.guest_os",
    "Module": "qvmi.semantics.guest_os",
    "Gap": "qvmi.semantics.guest_os",
    "Evidence": "qvmi.semantics.guest_os",
    "View": "qvmi.view",
    "Provenance": "qvmi.view",
    "Taken": "qvmi.view",
    "Va": "qvmi.addr",
    "Pa": "qvmi.addr",
    "Policy": "qvmi.policy",
    "Grant": "qvmi.policy",
    "Codepack": "qvmi.codepacks.codepack",
    "Finding": "qvmi.codepacks.codepack",
    "Alert": "qvmi.codepacks.alert",
    "QvmiError": "qvmi.errors",
    "UsageError": "qvmi.errors",
    "AttachError": "qvmi.errors",
    "MachineGone": "qvmi.errors",
    "MemoryFault": "qvmi.errors",
    "SymbolsError": "qvmi.errors",
    "GuestError": "qvmi.errors",
    "UnknownGuest": "qvmi.errors",
    "StaleView": "qvmi.errors",
    "PolicyDenied": "qvmi.errors",
    "BusError": "qvmi.errors",
    "CodepackError": "qvmi.errors",
}
"""Where each public name lives; it is imported when it is first asked for."""

__all__ = [  # noqa: RUF022 - the most important first, errors last
    "attach",
    "attach_sync",
    "open_dump",
    "Machine",
    "SyncMachine",
    "MachineFacts",
    "Dump",
    "HitStream",
    "Hit",
    "BreakpointKind",
    "GuestOS",
    "GuestFacts",
    "Listing",
    "Process",
    "Thread",
    "Module",
    "Gap",
    "Evidence",
    "View",
    "Provenance",
    "Taken",
    "Va",
    "Pa",
    "Policy",
    "Grant",
    "Codepack",
    "Finding",
    "Alert",
    "QvmiError",
    "UsageError",
    "AttachError",
    "MachineGone",
    "MemoryFault",
    "SymbolsError",
    "GuestError",
    "UnknownGuest",
    "StaleView",
    "PolicyDenied",
    "BusError",
    "CodepackError",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qvmi' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
