"""Files that memory shows otherwise than the disk, though the guest has changed neither.

A page of the page cache that waits for nothing to be written holds what is on the disk. Where it does not,
somebody has changed one of them behind the kernel's back: the page, which every program then reads and no
look at the disk shows, or the disk, which the guest does not show until it reads it again.

References: CVE-2022-0847, by which a program changes pages of files that it may only read; MITRE ATT&CK
T1565.001 Stored Data Manipulation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.process_evidence import seen, short
from qvmi.codepacks.resources import NO_RESOURCES, Resources, Wanted
from qvmi.machine.devices.disk_differences import DiskDifference
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["DiskDifferences"]

_MOST_FILES: Final = 100
"""Files that are told of one by one; a guest that shows more has another trouble than these files."""
_MOST_PAGES: Final = 8
"""Pages of a file whose hashes are told: each is an observation of both views."""
_MAX_DISK: Final = 80
"""Letters of a disk's id in a key, which has 200."""


@dataclass(frozen=True, slots=True)
class DiskDifferences:
    """This tells of files whose pages in memory are not what the disk has.

    Args:
        interval_s: from one comparison to the next.
    """

    interval_s: float = 30.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "disk-differences"

    @property
    def grants(self) -> frozenset[Grant]:
        """It reads memory and disks."""
        return frozenset({Grant.READ_MEMORY, Grant.DISK})

    @property
    def wanted(self) -> Wanted:
        """It is shown the comparison of page cache and disks."""
        return Wanted(disk_differences=True)

    def inspect(
        self,
        guest: GuestOS,  # noqa: ARG002 - the contract gives it
        memory: PhysicalMemory,  # noqa: ARG002 - as above
        resources: Resources = NO_RESOURCES,
    ) -> Iterable[Finding]:
        """This tells of each file once, whatever number of its pages differs."""
        files: dict[tuple[str, int, str, int], list[DiskDifference]] = {}
        for row in resources.disk_differences:
            files.setdefault((row.disk, row.volume, row.device, row.inode), []).append(row)
        for number, rows in enumerate(files.values()):
            if number == _MOST_FILES:
                yield _further(rows[0], count=len(files) - number)
                return
            yield _finding(rows)


def _finding(rows: Sequence[DiskDifference]) -> Finding:
    first = rows[0]
    pages = "a page" if len(rows) == 1 else f"{len(rows)} pages"
    return Finding(
        claim=f"{short(first.path)}: {pages} in memory, unchanged by the guest, and not what disk"
        f" {short(first.disk)} has",
        severity=Severity.HIGH,
        technique="T1565.001",
        key=f"inode {first.inode} of {first.device} on {first.disk[:_MAX_DISK]}, {first.volume}",
        evidence=tuple(
            observation for row in rows[:_MOST_PAGES] for observation in _views(row, len(rows))
        ),
    )


def _views(row: DiskDifference, pages: int) -> Iterator[Observation]:
    """These are the two views that disagree about one page."""
    yield seen(
        "page cache",
        row,
        ("path", "device", "inode", "offset"),
        sha256=row.cached,
        pages=pages,
    )
    yield Observation(
        view="disk",
        present=True,
        facts={
            "disk": short(row.disk),
            "volume": row.volume,
            "inode": row.inode,
            "offset": row.offset,
            "sha256": row.stored,
        },
    )


def _further(row: DiskDifference, *, count: int) -> Finding:
    """This tells that there are more files than are told one by one."""
    return Finding(
        claim=f"{count} further files are in memory otherwise than on the disks",
        severity=Severity.HIGH,
        technique="T1565.001",
        key="further files",
        evidence=tuple(_views(row, 1)),
    )
