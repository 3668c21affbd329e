"""The command ``disk`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs

__all__ = ["DISK"]


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=["list", "ls", "cat", "stat", "compare"], help="what to do"
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        type=values.given,
        help="from the root of the volume; compare: of the guest",
    )
    parser.add_argument(
        "--device", metavar="ID", type=values.given, help="which disk; the only one"
    )
    parser.add_argument(
        "--volume",
        metavar="N",
        type=values.count,
        help="which partition, 0 for a disk without; the only one with a file system",
    )
    parser.add_argument(
        "-o", "--output", dest="to", metavar="FILE", type=values.new_file, help="cat: into a file"
    )


DISK: Final = Command(
    "disk",
    "what is on the machine's virtual disks, read from the host",
    "Reads a disk in QEMU's own image files, raw or qcow2, while the guest runs: read-only, without\n"
    "a lock. list tells the disks, their volumes and, of those that are not read, why. ls, cat and\n"
    "stat read ext2, ext3 and ext4. What the guest has not written back yet is not there: after\n"
    "`sync; sync` in the guest all is. Ends with 4 where the guest changes what is being read.\n"
    "compare tells pages of files that are in memory, unchanged, and not what the disk has: changed\n"
    "behind the kernel's back. It ends with 1 then.",
    (
        ("qvmi --qmp /run/vm/qmp.sock disk list", "disks and volumes"),
        ("qvmi disk ls /etc", "a folder of the only one; with QVMI_QMP set"),
        ("qvmi disk cat /etc/passwd --device virtio0 --volume 1", "a file of that one"),
        ("qvmi disk cat /var/log/wtmp -o wtmp", "into a file"),
        ("qvmi disk stat /etc/shadow --json", "an inode, for a program"),
        ("qvmi disk compare /usr", "was a program changed in memory alone?"),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.disks:disk",
    _declare,
    why_no_dump="a dump is memory alone, without disks",
    late="path",
    grants=("disk",),
)
