"""The command ``flows`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs

__all__ = ["FLOWS"]


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="seconds",
        metavar="S",
        type=values.seconds,
        default=10.0,
        help="how long to watch; 10",
    )
    parser.add_argument(
        "--netdev", metavar="ID", type=values.given, help="what is behind the card; the only one"
    )


FLOWS: Final = Command(
    "flows",
    "what passes the network card, and which process it is of",
    "Has QEMU capture what the guest sends and receives (filter-dump), and tells of each flow of TCP\n"
    "and UDP how much it was, whose socket it has, and the name that DNS told the address for. A\n"
    "flow that outlived several looks at the sockets and has none is marked, and ends with 1.\n"
    "Nothing of the capture is kept.",
    (
        ("qvmi --qmp /run/vm/qmp.sock flows", "for ten seconds"),
        ("qvmi flows --for 60 --json | jq '.items[] | select(.unowned)'", "what nobody has"),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.flows:flows",
    _declare,
    why_no_dump="a dump is memory alone, without a network",
    grants=("network-capture",),
)
