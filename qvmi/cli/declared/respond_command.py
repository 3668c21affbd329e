"""The command ``respond`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs

__all__ = ["RESPOND"]


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "undo"], help="what to do with runs")
    parser.add_argument("run", metavar="RUN", nargs="?", type=values.given, help="undo: which one")
    parser.add_argument("--policy", metavar="FILE", type=values.given, help="undo: what is granted")
    parser.add_argument(
        "--state", metavar="FOLDER", type=values.given, help="of the watch, if not the usual one"
    )


RESPOND: Final = Command(
    "respond",
    "what playbooks have done to a machine, and undo it",
    "list tells which playbooks were run for which alerts, and what can be undone. undo does it, the\n"
    "last thing first: links are up, bytes as before, snapshots in images deleted. What the\n"
    "[codepacks.response] of the policy does not grant is refused. A watch that runs has the machine and\n"
    "the list of runs to itself: end it first.",
    (
        ("qvmi --qmp /run/vm/qmp.sock respond list", "which runs were there?"),
        (
            "qvmi --qmp /run/vm/qmp.sock respond undo hidden-20261129-124500-3fa2 --policy policy.toml",
            "as if it had not been",
        ),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.respond:respond",
    _declare,
    grants=("write",),
)
