"""Whether a disk that the guest writes to is one that this host uses itself."""

from collections.abc import Iterator
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, Verdict, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Facts, GivenDisk, Unseen
from qvmi.manager.isolation.reach import reach_of_the_host

__all__ = ["disks"]

_NETWORKED: Final = frozenset({
    *("ftp", "ftps", "gluster", "http", "https", "iscsi", "nbd", "nfs", "rbd", "sheepdog", "ssh"),
})  # fmt: skip
_OWN: Final = "give the guest a disk or an image of its own"
_MOST_PLACES: Final = 3
"""Mount points that are told."""


def disks(facts: Facts) -> Check:
    """This judges disks of the host's, and files that the host has mounted, which the machine has open."""
    name = "no disk of the machine's is in use by this host, or leads to the bus"
    if isinstance(facts.disks, Unseen):
        return Check(name, (not_checkable(facts.disks.reason, "run qvmi as root"),))
    found = [finding for each in facts.disks for finding in _disk(facts, each)]
    found += _over_the_network(facts)
    return Check.of(name, found, else_proven="it has no disk of this host's open")


def _over_the_network(facts: Facts) -> Iterator[Finding]:
    """These are disks for which QEMU connects when the guest reads; between reads no socket tells of them."""
    if facts.broker is None or isinstance(facts.machine, Unseen):
        return
    reach = [each.verdict for each in reach_of_the_host(facts, "a disk")]
    for driver in sorted(facts.machine.disks & _NETWORKED):
        if set(reach) != {Verdict.PROVEN}:
            shown = f"a disk by {driver}, for which QEMU connects as this host does"
            yield not_checkable(shown, "run the bus in a network namespace of its own")


def _disk(facts: Facts, disk: GivenDisk) -> Iterator[Finding]:
    places = ", ".join(disk.places[:_MOST_PLACES])
    shown = f"fd {disk.number}: {disk.path}" + (
        f", which this host has mounted at {places}" * bool(places)
    )
    inside = [
        path.path
        for path in facts.paths
        if any(device in disk.filesystems for device, _ in path.folders)
    ]
    if inside:
        yield refuted(f"{shown}, and which may hold {inside[0]}", _OWN)
    elif places and facts.broker is not None:
        yield not_checkable(f"{shown}: what the guest writes, this host's kernel reads", _OWN)
    elif disk.is_network and facts.broker is not None:
        yield not_checkable(f"{shown}: which program is behind it cannot be seen", _OWN)
    else:
        yield proven(shown if places else f"{shown}, which this host has not mounted")
