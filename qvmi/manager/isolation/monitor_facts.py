"""What QEMU says of its own ways out: network, character devices, devices, objects.

References: QEMU ``net/net.c`` (``hmp_info_network``), ``net/slirp.c`` and libslirp ``src/misc.c``
(``slirp_connection_info``) for ``info usernet``, ``softmmu/qdev-monitor.c`` (``qdev_print``) for
``info qtree``, ``qapi/char.json``, ``qapi/qom.json``, ``qapi/block-core.json``; ``qemu-options.hx``
for -netdev, -nic and -net.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Final, TypeVar

import msgspec

from qvmi.errors import QmpCommandFailed, QmpProtocolError
from qvmi.manager.isolation.facts import Chardev, Machine, Netdev, OptionOfNetdev
from qvmi.qmp.monitor import Monitor

__all__ = ["ask_machine", "network_options"]

_T = TypeVar("_T")

_MAX_LINES: Final = 100_000
"""Lines of an answer: ``info qtree`` has 20 for each device; QMP's messages are bounded, too."""
_MAX_NETDEVS: Final = 4096
"""QEMU has at most 256 NICs of 8 queues each, and as many netdevs."""

_NETDEV: Final = re.compile(
    r"[ \\]*(?:(?P<port>[^:]*): )?(?P<name>[^:]*): index=\d+,type=(?P<kind>[\w-]+),?(?P<rest>.*)"
)
_DEVICE: Final = re.compile(r" *dev: (?P<model>[\w.,-]+),")
_PERIPHERALS: Final = ("/machine/peripheral", "/machine/peripheral-anon")
_HOTPLUGGED: Final = "hotplugged"
_MAX_PROPERTIES: Final = 65536
"""Children of an object: a machine has some hundred devices."""
_FILTERS: Final = "filters:"
_FILTER: Final = "  - "
"""Begins each of the lines behind that, which QEMU prints for each client that has filters."""
_FORWARD: Final = "HOST_FORWARD]"
_CHILD: Final = re.compile(r"child<(.+)>")
_OPTIONS: Final = frozenset({"netdev", "nic", "net"})
_SET: Final = "set"
_CHANGE: Final = re.compile(
    r"(?:netdev|nic|net)\.(?P<name>[^.]+)\.(?P<key>guestfwd|tftp|smb)=(?P<value>.*)", re.DOTALL
)
_FOLDER: Final = re.compile(r"(?:^|,)(tftp|smb)=((?:[^,]|,,)*)")
_FOLDERS: Final = ("tftp", "smb")
_ID: Final = re.compile(r"(?:^|,)id=([^,]+)")
_TYPE: Final = re.compile(r"(?:^|,)type=([^,]+)")
_RESTRICT: Final = re.compile(r"(?:^|,)restrict=(?:on|yes|true|y)(?:,|$)")
_GUESTFWD: Final = re.compile(r"(?:^|,)guestfwd=((?:[^,]|,,)*)")


class _Chardev(msgspec.Struct, frozen=True):
    label: str
    filename: str


class _Object(msgspec.Struct, frozen=True):
    name: str
    type: str


class _Disk(msgspec.Struct, frozen=True):
    drv: str


async def ask_machine(monitor: Monitor) -> Machine:
    """This asks QEMU; what it says is its own word alone.

    Raises:
        QmpCommandFailed: it refused a question.
        QmpProtocolError: an answer has not the documented form.
    """
    network = await _lines(monitor, "info network")
    chardevs = _typed("query-chardev", await monitor.execute("query-chardev"), tuple[_Chardev, ...])
    objects = _typed(
        "qom-list", await monitor.execute("qom-list", {"path": "/objects"}), tuple[_Object, ...]
    )
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    disks = _typed("query-named-block-nodes", nodes, tuple[_Disk, ...])
    devices = await _lines(monitor, "info qtree")
    forwards = await _lines(monitor, "info usernet")
    return Machine(
        netdevs=tuple(_netdevs(network)),
        filters=tuple(_filters(network)),
        forwards=tuple(line.strip() for line in forwards if _FORWARD in line),
        chardevs=tuple(Chardev(each.label, each.filename) for each in chardevs),
        devices=frozenset(match["model"] for line in devices if (match := _DEVICE.match(line))),
        objects=_children(objects),
        disks=frozenset(each.drv for each in disks),
        plugged=frozenset([each async for each in _plugged(monitor)]),
    )


async def _plugged(monitor: Monitor) -> AsyncIterator[str]:
    """These are the netdevs of cards that were plugged in: QEMU tells of a netdev not when it came."""
    for folder in _PERIPHERALS:
        for name in _children(await _properties(monitor, folder)):
            path = f"{folder}/{name}"
            has = {each.name for each in await _properties(monitor, path)}
            if {"netdev", _HOTPLUGGED} <= has and await _property(monitor, path, _HOTPLUGGED):
                yield str(await _property(monitor, path, "netdev"))


async def _properties(monitor: Monitor, path: str) -> tuple[_Object, ...]:
    """These are an object's properties; none where there is no such object (any more)."""
    try:
        said = await monitor.execute("qom-list", {"path": path})
    except QmpCommandFailed:
        return ()
    return _typed("qom-list", said, tuple[_Object, ...])[:_MAX_PROPERTIES]


async def _property(monitor: Monitor, path: str, name: str) -> object:
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except QmpCommandFailed:
        return None


async def _lines(monitor: Monitor, line: str) -> Sequence[str]:
    lines = (await monitor.hmp(line)).splitlines()
    if len(lines) > _MAX_LINES:
        raise QmpProtocolError(line, f"more than {_MAX_LINES} lines")
    return lines


def _netdevs(lines: Sequence[str]) -> Iterator[Netdev]:
    for line in lines[:_MAX_NETDEVS]:
        if line.startswith((_FILTERS, _FILTER)):
            continue
        match = _NETDEV.fullmatch(line)
        if match:
            port = match["port"] or ""
            yield Netdev(match["name"], match["kind"], match["rest"].rstrip(","), port)
        elif line.strip() and not line.startswith("hub "):
            yield Netdev(line.strip(), "", "")  # in a form that is not known, and so told


def _filters(lines: Sequence[str]) -> Iterator[str]:
    return (line.removeprefix(_FILTER).strip() for line in lines if line.startswith(_FILTER))


def _children(objects: Sequence[_Object]) -> Mapping[str, str]:
    matches = ((each.name, _CHILD.fullmatch(each.type)) for each in objects)
    return {name: match[1] for name, match in matches if match}


def _typed(command: str, value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise QmpProtocolError(command, str(error)) from error


def network_options(arguments: Sequence[str]) -> tuple[OptionOfNetdev, ...]:
    """These are the network options of a command line; what is odd in it is passed over."""
    named = (
        (option.lstrip("-"), value)
        for option, value in pairwise(arguments)
        if option.startswith("-")
    )
    found = (
        _changed(match) if match else _option(value)
        for option, value in named
        if (match := _CHANGE.fullmatch(value) if option == _SET else None) or option in _OPTIONS
    )
    return tuple(islice(found, _MAX_NETDEVS))


def _changed(match: re.Match[str]) -> OptionOfNetdev:
    """This is a later word on an option that was given before, by ``-set``."""
    if match["key"] in _FOLDERS:
        return OptionOfNetdev(match["name"], folders=((match["key"], match["value"]),))
    return OptionOfNetdev(match["name"], guestfwd=(match["value"],))


def _option(value: str) -> OptionOfNetdev:
    if value.startswith("{"):
        return _json_option(value)
    name = _ID.search(value)
    forwards = [each.replace(",,", ",") for each in _GUESTFWD.findall(value)]
    typed = _TYPE.search(value)
    kind = typed[1] if typed else value.partition(",")[0]
    restricted = _RESTRICT.search(value) is not None
    folders = [(key, path.replace(",,", ",")) for key, path in _FOLDER.findall(value)]
    own = name[1] if name else ""
    return OptionOfNetdev(own, kind, restricted, tuple(forwards), tuple(folders))


def _json_option(value: str) -> OptionOfNetdev:
    try:
        options = json.loads(value)
    except (ValueError, RecursionError):
        return OptionOfNetdev("")
    forwards = options.get("guestfwd", [])
    forwards = forwards if isinstance(forwards, list) else [forwards]
    shown = [
        str(each.get("str", each)) if isinstance(each, dict) else str(each) for each in forwards
    ]
    return OptionOfNetdev(
        str(options.get("id", "")),
        str(options.get("type", "")),
        options.get("restrict") is True,
        tuple(shown),
        tuple((key, str(options[key])) for key in _FOLDERS if key in options),
    )
