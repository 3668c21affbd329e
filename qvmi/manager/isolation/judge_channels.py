"""Whether a socket, character device, pipe or device of the machine's leads to the bus."""

import re
import stat
from collections.abc import Iterator
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Descriptor, Facts, Socket, Unseen
from qvmi.manager.isolation.harmless_devices import is_harmless
from qvmi.manager.isolation.judge_network import interface_names
from qvmi.manager.isolation.reach import is_place_of, network_listeners
from qvmi.manager.isolation.tun_place import is_tun

__all__ = ["agreement", "chardevs", "devices", "sockets"]

_CUT: Final = "take that connection out of the VM's configuration"
_AS_ROOT: Final = "run qvmi as root"
_OUTDEV: Final = re.compile(r"\boutdev=([^,]+)")
_OPEN_ENDED: Final = re.compile(r"(disconnected:)?(unix|tcp|udp|telnet|websocket|tn3270|vsock)\b")
_NETWORKED: Final = re.compile(r"(disconnected:)?(tcp|udp|telnet|websocket|tn3270)\b")
_OBJECTS: Final = frozenset({
    *("can-host-socketcan", "colo-compare", "cryptodev-vhost-user", "vfio-user-server"),
    *("x-remote-object", "x-vfio-user-server"),
})  # fmt: skip
_OPEN_ENDED_MODELS: Final = frozenset({"ivshmem-doorbell", "usb-host", "usb-mtp", "usb-redir"})
"""A server's memory, a device of the host's (a modem, too), a folder of the host's, a device of anybody's."""
_CHARACTER_NETWORK: Final = re.compile(r"/dev/tap\d+")
_HAVE_NO_SOCKETS: Final = frozenset({"nic", "hubport", "tap"})


def sockets(facts: Facts) -> Check:
    """This judges all sockets of QEMU's by who is at their other ends."""
    name = "no socket of QEMU's leads to the bus (the kernel's word)"
    if isinstance(facts.qemu.descriptors, Unseen):
        return Check(name, (not_checkable(facts.qemu.descriptors.reason, _AS_ROOT),))
    held = facts.sockets_of_qemu()
    found = [finding for each, socket in held for finding in _socket(facts, each, socket)]
    found += [not_checkable(reason, _AS_ROOT) for reason in facts.host.unseen]
    what = "its monitors', or lead to nobody" if held else "so there are none"
    return Check.of(name, found, else_proven=f"QEMU has {len(held)} sockets: {what}")


def _socket(facts: Facts, descriptor: Descriptor, socket: Socket | None) -> Iterator[Finding]:
    if socket is None:
        yield not_checkable(
            f"fd {descriptor.number}: a socket that no table of this host's has", _AS_ROOT
        )
        return
    shown = f"fd {descriptor.number}: {socket.protocol} {_bare(socket.local)}".rstrip()
    if _is_control(facts, socket) or socket.protocol == "netlink":
        return
    if socket.protocol == "packet":
        yield not_checkable(f"{shown}: raw frames", "use a tap")
    elif not socket.listening:
        yield from _connection(facts, socket, shown)
    elif isinstance(facts.machine, Unseen) and socket.protocol != "unix":
        yield not_checkable(f"{shown}: what it is for only QEMU could say", "let qvmi have its QMP")


def _connection(facts: Facts, socket: Socket, shown: str) -> Iterator[Finding]:
    ends = facts.host.far_ends.get(socket.inode, ())
    owners = facts.owners_behind(socket.inode)
    others = owners - {facts.qemu.pid}
    members = facts.broker.members if facts.broker else frozenset()
    for pid in sorted(others & members):
        is_broker = facts.broker is not None and pid == facts.broker.process.pid
        role = "the broker" if is_broker else "on the bus"
        yield refuted(f"{shown} is connected with {facts.name_of(pid)}, which is {role}", _CUT)
    if others & members:
        return
    if _goes_to_the_broker(facts, socket):
        yield refuted(f"{shown} is connected with {socket.remote}, where the broker listens", _CUT)
    elif not owners and (ends or socket.peer is not None):
        yield not_checkable(f"{shown}: who is at its other end was not found", _AS_ROOT)
    elif others:
        names = ", ".join(facts.name_of(pid) for pid in sorted(others))
        yield proven(f"{shown} is connected with {names}")


def _goes_to_the_broker(facts: Facts, socket: Socket) -> bool:
    """This tells whether a connection leads to a port of the broker's, which may not have accepted it."""
    return facts.broker is not None and any(
        each.network == socket.network and is_place_of(each, socket.remote)
        for each in network_listeners(facts.broker)
    )


def _is_control(facts: Facts, socket: Socket) -> bool:
    """This tells whether it is a monitor's or a gdbstub's, to which the guest has no way."""
    if not facts.ours.isdisjoint(facts.host.far_ends.get(socket.inode, ())):
        return True
    if socket.protocol == "unix":
        return socket.local in facts.controls
    return f":{socket.local.rpartition(':')[2]}" in facts.controls


def chardevs(facts: Facts) -> Check:
    """This judges character devices, filters that copy frames, pipes and terminals."""
    name = "no character device, filter or pipe leads to the bus"
    found = list(_pipes(facts))
    machine = facts.machine
    if isinstance(machine, Unseen):
        found.append(not_checkable(machine.reason, "let qvmi have its QMP"))
        return Check(name, tuple(found))
    places = {each.name: each.place for each in machine.chardevs}
    for chardev, place in places.items():
        leads = facts.ends.get(chardev) in _sockets_of_the_bus(facts)
        if leads or any(_leads_to(place, target) for target in _targets(facts)):
            found.append(refuted(f"{chardev}: {place} leads to the broker", _CUT))
    for line in machine.filters:
        found += _filter(facts, line, places)
    return Check.of(
        name, found, else_proven=f"{len(places)} character devices, none of which names the bus"
    )


def _sockets_of_the_bus(facts: Facts) -> frozenset[str]:
    return frozenset(each.path for each in facts.broker.sockets) if facts.broker else frozenset()


def _targets(facts: Facts) -> Iterator[str]:
    if facts.broker is not None:
        yield from (each.path for each in facts.broker.sockets)
        if facts.broker.process.network == facts.qemu.network:
            yield from (
                f":{each.local.rpartition(':')[2]}" for each in network_listeners(facts.broker)
            )


def _leads_to(place: str, target: str) -> bool:
    """This tells whether a place is that of a socket: a path, or a port over TCP."""
    if target.startswith(":"):
        return bool(_NETWORKED.match(place)) and re.search(rf"{target}\b", place) is not None
    return re.search(rf":{re.escape(target)}(,|$|\s)", place) is not None


def _filter(facts: Facts, line: str, places: dict[str, str]) -> Iterator[Finding]:
    outdev = _OUTDEV.search(line)
    place = places.get(outdev[1], "") if outdev else ""
    if facts.broker is not None and _OPEN_ENDED.match(place):
        yield not_checkable(
            f"{line.partition(',')[0]} copies the guest's frames to {place}", "take it out"
        )
    else:
        yield proven(f"{line.partition(',')[0]} {place}".rstrip())


def _pipes(facts: Facts) -> Iterator[Finding]:
    members = facts.broker.members if facts.broker else frozenset()
    for pipe, pid in facts.host.pipes:
        shown = f"{pipe} is open in {facts.name_of(pid)}"
        if pid in members:
            yield refuted(f"{shown}, which is on the bus", _CUT)
        else:
            yield proven(shown)
    if facts.host.hidden and facts.broker is not None:
        for each in _shared_pipes(facts):
            yield not_checkable(f"{each}: who else has it open? {facts.host.hidden}", _AS_ROOT)


def _shared_pipes(facts: Facts) -> Iterator[str]:
    """These are the pipes and terminals of the machine's that have a name."""
    for each in () if isinstance(facts.qemu.descriptors, Unseen) else facts.qemu.descriptors:
        if each.terminal is not None:
            yield f"/dev/pts/{each.terminal}"
        elif stat.S_ISFIFO(each.mode) and not each.target.startswith("pipe:"):
            yield each.target


def devices(facts: Facts) -> Check:
    """This judges devices that have a way out of their own."""
    name = "no device leads out past network and sockets"
    found = list(_open_devices(facts))
    if isinstance(facts.machine, Unseen):
        found.append(not_checkable(facts.machine.reason, "let qvmi have its QMP"))
    else:
        for model in sorted(facts.machine.devices):
            found += _device(facts, model)
        for each, kind in sorted(facts.machine.objects.items()):
            if kind in _OBJECTS and facts.broker is not None:
                what = f"object {each}: {kind}: what is behind it cannot be seen"
                found.append(not_checkable(what, "take the object out"))
    return Check.of(name, found, else_proven="no vsock, vhost-user, shared-memory server or vfio")


def _device(facts: Facts, model: str) -> Iterator[Finding]:
    if "vsock" in model:
        yield _vsock(facts, model)
    elif model.startswith(("vhost-user-", "vfio-")) or model in _OPEN_ENDED_MODELS:
        if facts.broker is None:
            yield proven(f"{model}; no bus was named")
        else:
            yield not_checkable(f"{model}: what is behind it cannot be seen", "take the device out")


def _vsock(facts: Facts, shown: str) -> Finding:
    if facts.broker is None:
        return proven(f"{shown}; no bus was named")
    return refuted(
        f"{shown} leads to every vsock listener of this host, whatever network namespace it is in",
        "take the vsock device out",
    )


def _open_devices(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.qemu.descriptors, Unseen):
        yield not_checkable(facts.qemu.descriptors.reason, _AS_ROOT)
        return
    for each in facts.qemu.descriptors:
        shown = f"fd {each.number}: {each.target}"
        if each.target == "/dev/vhost-vsock":
            yield _vsock(facts, shown)
        elif each.target.startswith("/dev/vfio/") or _CHARACTER_NETWORK.fullmatch(each.target):
            yield not_checkable(f"{shown}: hardware or macvtap", "use a tap with its own bridge")
        elif facts.broker and not is_harmless(each):
            yield not_checkable(f"{shown}: a device of this host's, which may lead anywhere", _CUT)


def agreement(facts: Facts) -> Check:
    """This judges whether QEMU and the kernel tell the same: a QEMU that was taken over may lie."""
    name = "QEMU says what the kernel says"
    unseen = [each for each in (facts.machine, facts.qemu.descriptors) if isinstance(each, Unseen)]
    if unseen:
        return Check(name, (not_checkable(unseen[0].reason, "let qvmi have its QMP, as root"),))
    found = [
        *_tun_disagreements(facts),
        *_socket_disagreements(facts),
        *_slirp_disagreements(facts),
    ]
    return Check.of(name, found, else_proven="interfaces and network sockets are those it tells of")


def _tun_disagreements(facts: Facts) -> Iterator[Finding]:
    machine, descriptors = facts.machine, facts.qemu.descriptors
    if isinstance(machine, Unseen) or isinstance(descriptors, Unseen):
        return
    seen = {each.interface for each in descriptors if is_tun(each.target, each.special)}
    said = interface_names(machine)
    nameless = any(n.kind == "tap" and "ifname=" not in n.details for n in machine.netdevs)
    for name in sorted(seen - said) if not nameless else ():
        yield refuted(f"QEMU has the interface {name} open, and tells of none", "trust it no more")
    for name in sorted(said - seen):
        yield refuted(f"QEMU tells of the tap {name}, and has it not open", "trust it no more")


def _socket_disagreements(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if isinstance(machine, Unseen):
        return
    may_have = any(each.kind not in _HAVE_NO_SOCKETS for each in machine.netdevs)
    if may_have or any(_NETWORKED.match(each.place) for each in machine.chardevs):
        return
    for each, socket in facts.sockets_of_qemu():
        if socket is None or socket.protocol in {"unix", "netlink"} or socket.listening:
            continue
        if not _is_control(facts, socket):
            yield not_checkable(
                f"fd {each.number}: {socket.protocol} {socket.local} to {socket.remote or 'anybody'}, of"
                " which no netdev and no character device tells",
                "find out what it is for: a disk over the network has one, too",
            )


def _slirp_disagreements(facts: Facts) -> Iterator[Finding]:
    """This compares the command line, the only other witness: slirp has no interface of the kernel's."""
    machine = facts.machine
    if isinstance(machine, Unseen):
        return
    told = {each.name: each for each in machine.netdevs if each.kind == "user"}
    given = [each for each in facts.options if each.kind == "user"]
    if len(told) < len(given):
        yield not_checkable(
            f"the command line has {len(given)} networks by slirp, and QEMU tells of {len(told)}",
            "start the machine without those that were unplugged",
        )
    for each in given:
        netdev = told.get(each.name)
        if netdev and "restrict=on" in netdev.details.split(",") and not each.restricted:
            yield not_checkable(
                f"{each.name}: QEMU tells of restrict=on, and its command line does not",
                "give restrict=on on the command line",
            )


def _bare(name: str) -> str:
    return name.replace("\0", "@")
