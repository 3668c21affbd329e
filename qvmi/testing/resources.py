"""What a codepack is shown beside memory, of rows of which a test names only what it is about."""

from collections.abc import Iterable
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.codepacks.resources import Resources
from qvmi.machine.devices.disk_differences import DiskDifference
from qvmi.machine.devices.flow_watch import Flow
from qvmi.semantics.guest_os import Gap, Listing
from qvmi.view import Provenance, Taken

__all__ = ["fake_disk_difference", "fake_flow", "fake_resources"]

_PROVENANCE: Final = Provenance(Taken.LIVE, at=0.0)
_INODES: Final = 0xFFFF_8884_0000_0000
_SPACING: Final = 0x1000


def fake_disk_difference(path: str, *, offset: int = 0, **changes: object) -> DiskDifference:
    """This makes a page of a file that memory shows otherwise than the disk; ``changes`` are fields."""
    inode = sum(path.encode())
    difference = DiskDifference(
        path=path,
        device="8:1",
        inode=inode,
        disk="virtio0",
        volume=1,
        offset=offset,
        cached="aa" * 32,
        stored="bb" * 32,
        address=Va(_INODES + inode * _SPACING),
    )
    return msgspec.structs.replace(difference, **changes)


def fake_flow(remote: str, **changes: object) -> Flow:
    """This makes a flow of TCP of process 1; ``changes`` are fields."""
    flow = Flow(
        protocol="tcp",
        local="10.0.2.15:40000",
        remote=remote,
        name="",
        packets_out=10,
        packets_in=10,
        bytes_out=1000,
        bytes_in=1000,
        pid=1,
        process="fake",
        socket=Va(_INODES),
        unowned=False,
    )
    return msgspec.structs.replace(flow, **changes)


def fake_resources(
    *,
    disk_differences: Iterable[DiskDifference] = (),
    flows: Iterable[Flow] = (),
    gaps: Iterable[Gap] = (),
) -> Resources:
    """This makes what a codepack is shown; the gaps are those of both."""
    return Resources(
        disk_differences=Listing(tuple(disk_differences), tuple(gaps), _PROVENANCE),
        flows=Listing(tuple(flows), tuple(gaps), _PROVENANCE),
    )
