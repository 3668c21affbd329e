"""The command ``scan`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs

__all__ = ["SCAN"]


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument("paths", metavar="RULES", nargs="*", help="files of YARA rules")
    parser.add_argument(
        "--string",
        dest="strings",
        metavar="TEXT",
        action="append",
        default=[],
        help="look for this text, as UTF-8; may be given again",
    )
    parser.add_argument(
        "--hex",
        dest="hexes",
        metavar="BYTES",
        action="append",
        default=[],
        help="look for these bytes, such as 'DE AD ?? EF'; may be given again",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--pid", metavar="PID", type=values.count, help="only the memory of this process"
    )
    for option, area, what in (
        ("--page-cache", "page cache", "only what is in memory of files"),
        ("--kernel", "kernel", "only the kernel's own memory"),
    ):
        where.add_argument(
            option, dest="area", action="store_const", const=area, default="ram", help=what
        )
    parser.add_argument(
        "--limit", metavar="N", type=values.count, help="hits of a rule that are told; 10000"
    )


SCAN: Final = Command(
    "scan",
    "search memory by YARA rules, and tell whose the hits are",
    "Searches the guest's RAM, and tells of each hit who has the memory: processes with the\n"
    "address they see it at, the file it is cached of, what of the kernel's it is, or nobody.\n"
    "Memory of a process is searched in the order in which it sees it, that of files in each\n"
    "file's. A rule's condition is judged for 16 MiB at a time. Hits end with 0, as it is you who\n"
    "knows what they mean; a rule that is wrong ends with 2.\n"
    "Needs: pip install 'qvmi[yara]'.",
    (
        ("qvmi --qmp /run/vm/qmp.sock scan rules.yar", "all of RAM"),
        ("qvmi scan --string secret --hex 'DE AD ?? EF'", "without rules; with QVMI_QMP set"),
        ("qvmi scan rules.yar --pid 1", "the memory of process 1"),
        ("qvmi scan rules.yar --page-cache --json", "of files, for a program"),
        ("qvmi --dump guest.core scan rules.yar --kernel", "of the kernel's own, in a dump"),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.scanning:scan",
    _declare,
    why_no_dump="",
)
