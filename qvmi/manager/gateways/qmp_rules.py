"""Which QMP commands may be used through a gateway, as data; what is not here is refused.

References: QEMU ``qapi/*.json``. Commands that look at the machine alone, and of those only what tells
nothing of the host: block devices and character devices name its files and sockets. What writes files
(``pmemsave``, ``dump-guest-memory``) does so as QEMU's user, and is never allowed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.addr import PaRange
from qvmi.manager.gateways.monitor_lines import monitor_line
from qvmi.manager.gateways.qmp_requests import Request
from qvmi.policy import Grant

__all__ = ["COMMANDS", "CONT", "EVENTS", "NEGOTIATE", "STOP", "Allowed", "Denied", "judge"]

NEGOTIATE: Final = "qmp_capabilities"
"""Ends the negotiation; it is answered by the gateway."""
LIST: Final = "query-commands"
"""Lists the commands; it is answered by the gateway."""
STOP: Final = "stop"
CONT: Final = "cont"

_HMP: Final = "human-monitor-command"
_QOM_GET: Final = "qom-get"
_SHOWN: Final = 80  # letters of a line, in refusals
_MAX_VCPU: Final = 4096
_OBJECT: Final = re.compile(r"/objects/[A-Za-z0-9_.-]{1,128}")
_PROPERTIES: Final = frozenset({"type", "mem-path", "offset", "size", "share"})

EVENTS: Final = frozenset({
    *("GUEST_PANICKED", "MIGRATION", "POWERDOWN", "RESET", "RESUME", "SHUTDOWN", "STOP", "SUSPEND"),
    *("WAKEUP", "RTC_CHANGE", "WATCHDOG", "DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE"),
})  # fmt: skip
"""The events that are handed on; others may tell of the host, such as who looks at its screen."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """This is a command that may be sent on.

    Args:
        command: its name.
        arguments: as they are written anew.
        grant: what it needs.
        memory: the physical memory that it reads, if it does.
    """

    command: str
    arguments: dict[str, object]
    grant: Grant | None = None
    memory: PaRange | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """This is a command that may not be sent on, whatever was granted.

    Args:
        reason: why, in words.
    """

    reason: str


Judge = Callable[[Request], Allowed | Denied]


def _plain(grant: Grant | None = None) -> Judge:
    """This allows a command that has no arguments."""

    def judged(request: Request) -> Allowed | Denied:
        if request.arguments:
            return Denied("takes no arguments")
        return Allowed(request.command, {}, grant)

    return judged


def _human(request: Request) -> Allowed | Denied:
    text = request.arguments.get("command-line")
    line = monitor_line(text) if isinstance(text, str) else None
    if line is None:
        return Denied(f"{str(text)[:_SHOWN]!r} is not one of the monitor's lines that are allowed")
    arguments: dict[str, object] = {"command-line": line.text}
    others = request.arguments.keys() - arguments.keys()
    if others:
        vcpu = request.arguments.get("cpu-index")
        number = type(vcpu) is int and 0 <= vcpu < _MAX_VCPU
        if others != {"cpu-index"} or not number:
            return Denied("not with these arguments")
        arguments["cpu-index"] = vcpu
    return Allowed(_HMP, arguments, line.grant, line.memory)


def _qom(request: Request) -> Allowed | Denied:
    path, name = request.arguments.get("path"), request.arguments.get("property")
    known = isinstance(path, str) and _OBJECT.fullmatch(path)
    if not known or not isinstance(name, str) or name not in _PROPERTIES:
        return Denied("only of objects that provide memory, and of those what and where it is")
    if request.arguments.keys() != {"path", "property"}:
        return Denied("not with these arguments")
    return Allowed(_QOM_GET, {"path": path, "property": name}, Grant.READ_MEMORY)


COMMANDS: Final[Mapping[str, Judge]] = {
    "query-version": _plain(),
    "query-name": _plain(),
    "query-status": _plain(),
    "query-target": _plain(),
    "query-kvm": _plain(),
    "query-cpus-fast": _plain(),
    "query-hotpluggable-cpus": _plain(),
    "query-current-machine": _plain(),
    "query-qmp-schema": _plain(),
    "query-memory-size-summary": _plain(),
    "query-memory-devices": _plain(Grant.READ_MEMORY),
    "query-balloon": _plain(),
    "query-memdev": _plain(Grant.READ_MEMORY),
    LIST: _plain(),
    _QOM_GET: _qom,
    _HMP: _human,
    STOP: _plain(Grant.PAUSE),
    CONT: _plain(Grant.PAUSE),
}
"""Every command that may be used, and what decides whether it may be used so."""


def judge(request: Request) -> Allowed | Denied:
    """This decides whether any grant allows a request; who holds it is for others to say."""
    rule = COMMANDS.get(request.command)
    if rule is None:
        return Denied("not one of the commands that a gateway hands on")
    return rule(request)
