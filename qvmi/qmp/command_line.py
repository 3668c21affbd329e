"""What a QEMU command line says about the machine and the sockets it can be controlled through.

References: QEMU ``qemu-options.hx``, ``util/qemu-option.c`` (a comma in a value is doubled, a bare
``X`` means ``X=on``, ``noX`` means ``X=off``), ``chardev/char.c`` (``qemu_chr_parse_compat``),
``util/qemu-config.c`` (``-readconfig``), ``gdbstub/system.c`` (``gdbserver_start``); of QEMU 11.1
``-object monitor-qmp,help``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qvmi.errors import UsageError
from qvmi.host.address import TcpAddress, UnixAddress

__all__ = ["CommandLine", "Purpose", "ServerSocket", "parse_command_line", "parse_config"]


class Purpose(StrEnum):
    """This is what QEMU does with a socket that it listens on."""

    QMP = "QMP"
    HMP = "human monitor"
    GDB = "gdbstub"
    OTHER = "character device"
    """A serial port, a guest agent and the like: what is written to it reaches the guest."""


@dataclass(frozen=True, slots=True)
class ServerSocket:
    """This is a socket that QEMU was told to listen on.

    Args:
        purpose: what it serves.
        address: where; None where the command line does not tell, because the descriptor was
            handed down (``fd=``), as libvirt does.
    """

    purpose: Purpose
    address: UnixAddress | TcpAddress | None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """This is what is known of a QEMU from its command line.

    Args:
        name: ``-name``; None where it was not given.
        machine: the machine type, such as ``q35``; None stands for QEMU's default.
        sockets: where it listens, in the order of the command line.
        config_files: the ``-readconfig`` files.
        libvirt: libvirt has started it, and holds its monitor.
    """

    name: str | None
    machine: str | None
    sockets: tuple[ServerSocket, ...]
    config_files: tuple[str, ...]
    libvirt: bool

    def purpose_of(self, address: UnixAddress | TcpAddress) -> Purpose | None:
        """This is what the socket at an address serves; None where there is no such socket."""
        for socket in self.sockets:
            if socket.address is not None and _same(socket.address, address):
                return socket.purpose
        return None


Group = tuple[str, Mapping[str, str]]
"""An option or a section of a config file: its name, and its keys."""

# libvirt's command lines have some 200 options; the kernel would take 2 MB of them (ARG_MAX).
_MAX_GROUPS: Final = 10_000

# Options without a value; every other takes the next argument, whatever that looks like.
# fmt: off
_FLAGS: Final = frozenset({
    "S", "alt-grab", "async-teardown", "audio-help", "ctrl-grab", "curses", "daemonize", "enable-fips",
    "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "jitdump", "mem-prealloc", "no-acpi",
    "no-fd-bootchk", "no-frame", "no-hpet", "no-kvm", "no-quit", "no-reboot", "no-shutdown",
    "no-user-config", "nodefaults", "nographic", "nouserconfig", "old-param", "one-insn-per-tb",
    "only-migratable", "perfmap", "portrait", "preconfig", "s", "semihosting", "singlestep", "snapshot",
    "usb", "version", "win2k-hack", "xen-attach", "xen-domid-restrict",
})
# fmt: on
_KIND: Final = "qom-type"
# The key that a leading bare value stands for; "" where there is none.
_FIRST_KEYS: Final = {
    "machine": "type",
    "name": "guest",
    "chardev": "backend",
    "mon": "chardev",
    "object": _KIND,
}
_SHORT: Final = {"M": "machine"}
_DEVICES: Final = {
    "qmp": Purpose.QMP,
    "qmp-pretty": Purpose.QMP,
    "monitor": Purpose.HMP,
    "gdb": Purpose.GDB,
    "serial": Purpose.OTHER,
    "parallel": Purpose.OTHER,
    "debugcon": Purpose.OTHER,
}
# QEMU 11.1 has monitors as objects, and warns of -mon.
_MONITORS: Final = {"monitor-qmp": Purpose.QMP, "monitor-hmp": Purpose.HMP}
_DEFAULT_STUB: Final = ServerSocket(Purpose.GDB, TcpAddress("localhost", 1234))
_LIBVIRT_MONITOR: Final = "charmonitor"
_YES: Final = frozenset({"on", "yes", "true", "y"})
_ANY_HOST: Final = frozenset({"", "*", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost"})  # noqa: S104 - compared, not bound to

_SECTION: Final = re.compile(r'\s*\[\s*([\w-]+)(?:\s+"([^"]*)")?\s*\]\s*')
_ENTRY: Final = re.compile(r'\s*([\w.-]+)\s*=\s*"([^"]*)"\s*')


def parse_command_line(arguments: Sequence[str], more: Iterable[Group] = ()) -> CommandLine:
    """This reads the arguments of a QEMU process.

    What is odd or unknown in them is passed over: they are somebody else's, and may be hostile.

    Args:
        arguments: as in ``/proc/PID/cmdline``, the program's own name left out.
        more: the groups of its config files, from `parse_config`.
    """
    groups = [*_groups(arguments[:_MAX_GROUPS]), *more]
    chardevs = {o["id"]: o for kind, o in groups if kind == "chardev" and "id" in o}
    return CommandLine(
        name=_last(groups, "name", "guest"),
        machine=_last(groups, "machine", "type"),
        sockets=tuple(_sockets(groups, chardevs)),
        config_files=tuple(o[""] for kind, o in groups if kind == "readconfig"),
        libvirt=_LIBVIRT_MONITOR in chardevs,
    )


def parse_config(text: str) -> list[Group]:
    """This reads the sections of a ``-readconfig`` file; what is malformed is passed over."""
    groups: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines()[:_MAX_GROUPS]:
        if section := _SECTION.fullmatch(line):
            groups.append((section[1], {"id": section[2]} if section[2] else {}))
        elif groups and (entry := _ENTRY.fullmatch(line)):
            groups[-1][1][entry[1]] = entry[2]
    return [*groups]


def _groups(arguments: Sequence[str]) -> Iterator[Group]:
    rest = iter(arguments)
    for argument in rest:
        name = argument.removeprefix("-").removeprefix("-")
        if not argument.startswith("-") or not name:
            continue  # a disk image
        name = _SHORT.get(name, name)
        value = "" if name in _FLAGS else next(rest, "")
        first = _FIRST_KEYS.get(name)
        yield name, {"": value} if first is None else _options(value, first)


def _options(text: str, first: str) -> dict[str, str]:
    if text.startswith("{"):
        return _json_options(text)
    options: dict[str, str] = {}
    # NUL cannot be part of an argument.
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            options[key] = value
        elif not options and first:
            options[first] = key
        elif key.startswith("no"):
            options[key[2:]] = "off"
        else:
            options[key] = "on"
    return options


def _json_options(text: str) -> dict[str, str]:
    """These are options in the form that newer QEMUs take too; values that are no text are left out."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in options.items() if isinstance(value, str)}


def _last(groups: Iterable[Group], kind: str, key: str) -> str | None:
    found = [options[key] for name, options in groups if name == kind and key in options]
    return found[-1] if found else None


def _sockets(
    groups: Iterable[Group], chardevs: Mapping[str, Mapping[str, str]]
) -> Iterator[ServerSocket]:
    for kind, options in groups:
        if kind == "s":
            yield _DEFAULT_STUB
        elif kind == "mon":
            purpose = Purpose.QMP if options.get("mode") == "control" else Purpose.HMP
            yield from _socket(purpose, chardevs.get(options.get("chardev", ""), {}))
        elif kind == "object" and options.get(_KIND) in _MONITORS:
            purpose = _MONITORS[options[_KIND]]
            yield from _socket(purpose, chardevs.get(options.get("chardev", ""), {}))
        elif kind in _DEVICES:
            yield from _socket(_DEVICES[kind], _device(kind, options[""], chardevs))
    # A chardev that was yielded above under its purpose is found there first.
    for options in chardevs.values():
        yield from _socket(Purpose.OTHER, options)


def _device(kind: str, text: str, chardevs: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """These are the options of a character device in its short form, such as ``unix:PATH,server``."""
    scheme, _, rest = text.partition(":")
    if scheme == "chardev":
        return chardevs.get(rest, {})
    if scheme == "unix":
        return {"backend": "socket", **_options(rest, "path")}
    if scheme not in {"tcp", "telnet", "websocket"}:
        return {}
    options = _options(rest, "place")
    host, _, port = options.get("place", "").rpartition(":")
    # The gdbstub adds what a TCP stub needs by itself.
    served = {"server": "on"} if kind == "gdb" else {}
    return {"backend": "socket", **options, **served, "host": host, "port": port}


def _socket(purpose: Purpose, options: Mapping[str, str]) -> Iterator[ServerSocket]:
    if options.get("backend") != "socket" or options.get("abstract", "off") in _YES:
        return
    if "fd" in options:
        yield ServerSocket(purpose, None)
    elif options.get("server", "off") in _YES:
        try:
            yield ServerSocket(purpose, _address(options))
        except (KeyError, ValueError, UsageError):
            return


def _address(options: Mapping[str, str]) -> UnixAddress | TcpAddress:
    if "path" in options:
        return UnixAddress(options["path"])
    host = options.get("host", "")
    return TcpAddress("localhost" if host in _ANY_HOST else host, int(options["port"]))


def _same(listed: UnixAddress | TcpAddress, asked: UnixAddress | TcpAddress) -> bool:
    if isinstance(listed, TcpAddress) and isinstance(asked, TcpAddress):
        local = listed.host in _ANY_HOST and asked.host in _ANY_HOST
        return listed.port == asked.port and (local or listed.host == asked.host)
    return listed == asked
