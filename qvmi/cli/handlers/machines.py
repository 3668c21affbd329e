"""The command that finds machines on this host: ``find``."""

import os
from collections.abc import Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.machine.find import FoundMachine, find_machines

__all__ = ["find"]

_MACHINE: Final[Sequence[Column[FoundMachine]]] = (
    Column("PID", lambda machine: str(machine.process.pid), right=True),
    Column("UID", lambda machine: str(machine.process.uid), right=True),
    Column("NAME", lambda machine: _text(machine.name or "-")),
    Column("MACHINE", lambda machine: _text(machine.machine or "-")),
    Column("ATTACH WITH", lambda machine: _text(machine.advice)),
)


def find(output: Output) -> ExitCode:
    """This lists the QEMUs that run on this host, with how each can be attached to."""
    found = find_machines()
    if output.json:
        items = [_document(machine) for machine in found]
        output.document({"items": items, "gaps": [], "provenance": None})
    elif found:
        output.table(table_of(_MACHINE, found))
    else:
        output.message("no QEMU runs here that this user can see")
    return ExitCode.FINE


def _document(machine: FoundMachine) -> dict[str, object]:
    return {
        "pid": machine.process.pid,
        "uid": machine.process.uid,
        "name": machine.name and _text(machine.name),
        "machine": machine.machine and _text(machine.machine),
        "address": machine.reachable_at and _text(str(machine.reachable_at)),
        "advice": _text(machine.advice),
        "sockets": [
            {
                "purpose": socket.purpose,
                "address": socket.address and _text(str(socket.address)),
                "state": socket.state,
            }
            for socket in machine.sockets
        ],
    }


def _text(name: str) -> str:
    """This writes bytes of a host's name that are no UTF-8 as text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
