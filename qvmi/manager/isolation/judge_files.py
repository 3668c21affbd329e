"""Whether memory, control sockets and folders of the machine are open to others."""

from collections.abc import Iterable, Iterator
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Descriptor, Facts, Machine, Opening, Unseen

__all__ = ["control_sockets", "folders", "memory_files", "shared_memory"]


_FOLDER_DISK: Final = "vvfat"


def shared_memory(facts: Facts) -> Check:
    """This judges who else may write to memory that the machine has mapped."""
    name = "nobody but QEMU writes to memory that the machine sees"
    if isinstance(facts.qemu.shared, Unseen):
        return Check(name, (not_checkable(facts.qemu.shared.reason, "run qvmi as root"),))
    found = list(_sharers(facts))
    count = len(facts.qemu.shared)
    if facts.host.hidden and count:
        shown = f"{count} files mapped shared, of which others may have some: {facts.host.hidden}"
        found.append(not_checkable(shown, "run qvmi as root"))
    seen = f"{count} files mapped shared, none writable in another process"
    return Check.of(name, found, else_proven=seen)


def _sharers(facts: Facts) -> Iterator[Finding]:
    members = facts.broker.members if facts.broker else frozenset()
    for each in facts.host.sharers:
        shown = f"{each.path} is {each.how} in {each.program or 'process'} (pid {each.pid}) too"
        if each.is_qemu:
            yield refuted(f"{shown}: another VM", "give it readonly=on there")
        elif each.pid in members:
            yield refuted(f"{shown}, which is on the bus", "map it read-only there")
        elif facts.broker is None:
            yield proven(f"{shown}; no bus was named")
        else:
            yield not_checkable(f"{shown}: where that leads is not known", "map it read-only there")


def memory_files(facts: Facts) -> Check:
    """This judges who may open the files that the guest's memory is in."""
    name = "the guest's memory is closed to other users"
    shared = facts.qemu.shared
    if isinstance(shared, Unseen):
        return Check(name, (not_checkable(shared.reason, "run qvmi as root"),))
    named = [each.opening for each in shared if each.writable and each.opening]
    found = [_judged(each, "chmod 600 it before QEMU starts, or use a memfd") for each in named]
    return Check.of(name, found, else_proven="no memory of the guest's is in a file with a name")


def control_sockets(facts: Facts) -> Check:
    """This judges who may connect to the machine's monitors and gdbstub."""
    name = "the machine's control sockets are closed to other users"
    found = [_judged(each, "put it into a folder of mode 700") for each in facts.control_sockets]
    for _, socket in facts.sockets_of_qemu():
        if socket is None or not socket.listening or socket.protocol == "unix":
            continue
        if f":{socket.local.rpartition(':')[2]}" in facts.controls:
            fix = "use a Unix socket in a folder of mode 700"
            found.append(refuted(f"{socket.local} takes anybody who reaches that port", fix))
    if isinstance(facts.qemu.descriptors, Unseen):
        found.append(not_checkable(facts.qemu.descriptors.reason, "run qvmi as root"))
    return Check.of(name, found, else_proven="its command line names none")


def _judged(opening: Opening, fix: str) -> Finding:
    shown = f"{opening.path} (uid {opening.owner}, mode {opening.mode:04o})"
    if opening.others:
        return refuted(f"{shown} can be opened by {opening.others}", fix)
    return proven(f"{shown} is closed to others")


def folders(facts: Facts) -> Check:
    """This judges folders the guest looks into (9p, virtiofs, vvfat), and disks with the bus's files."""
    name = "no folder of the bus or of the machine's sockets is shared with the guest"
    if isinstance(facts.qemu.descriptors, Unseen):
        return Check(name, (not_checkable(facts.qemu.descriptors.reason, "run qvmi as root"),))
    found = [*_files_of_the_bus(facts, facts.qemu.descriptors), *_unknown_servers(facts)]
    if facts.broker and isinstance(facts.machine, Machine) and _FOLDER_DISK in facts.machine.disks:
        shown = f"a {_FOLDER_DISK} disk shows the guest a folder, which QEMU does not tell"
        found.append(not_checkable(shown, "give the guest an image"))
    for each in facts.folders:
        inside = [path.path for path in facts.paths if (each.device, each.inode) in path.folders]
        shown = f"{each.path}, {each.holder}"
        if inside:
            fix = "share a folder that holds nothing of the bus's"
            found.append(refuted(f"{shown}, holds {inside[0]}", fix))
        else:
            found.append(proven(f"{shown}, holds nothing of the bus's"))
    return Check.of(name, found, else_proven="QEMU has no folder open")


def _files_of_the_bus(facts: Facts, descriptors: Iterable[Descriptor]) -> Iterator[Finding]:
    """These are the broker's own files that QEMU has open: as disks, the guest reads its secrets."""
    config = facts.broker.config if facts.broker else None
    if config is None or isinstance(config, Unseen):
        return
    files = {each.path for each in config.files}
    own = {path.own: path.path for path in facts.paths if path.path in files and any(path.own)}
    for each in descriptors:
        if each.target in files or (each.device, each.inode) in own:
            yield refuted(f"fd {each.number}: {each.target} is the broker's", "take that disk out")
    for identity in sorted(own.keys() & facts.named):
        yield refuted(
            f"its command line names {own[identity]}, which is the broker's: what it hands to the guest is"
            " not kept open",
            "take that file out",
        )


def _unknown_servers(facts: Facts) -> Iterator[Finding]:
    """These show the guest folders that are open in no process that is known."""
    if facts.broker is None:
        return
    for option in facts.options:
        if any(server == "smb" for server, _ in option.folders):
            shown = f"{option.name or option.kind}: SMB, for which a program is run"
            yield not_checkable(shown, "leave smb out")
    nine = isinstance(facts.machine, Machine) and any(
        "9p" in each for each in facts.machine.devices
    )
    if nine and not any(each.holder.startswith("open in") for each in facts.folders):
        yield not_checkable("9p of a folder that no process was seen to have open", "use local")
