"""The command ``events`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.words import EVENT_KINDS

__all__ = ["EVENTS"]


def _kinds(text: str) -> tuple[str, ...]:
    """This reads kinds with commas between them."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in EVENT_KINDS:
            raise ArgumentTypeError(f"{kind!r} is no kind of event: {', '.join(EVENT_KINDS)}")
    return kinds


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="duration_s", metavar="S", type=values.seconds, help="end after so long"
    )
    parser.add_argument(
        "--kinds", metavar="KIND,…", type=_kinds, help=f"only these: {', '.join(EVENT_KINDS)}"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="processes alone, by breakpoints: none is missed, each stops the guest for some ms",
    )


EVENTS: Final = Command(
    "events",
    "what happens in the guest, as it happens",
    "Prints processes that start, exec and exit, modules that are loaded and unloaded, sockets that\n"
    "begin to listen, and mounts, until Ctrl-C; with --json one document a line. The guest is not\n"
    "stopped: its kernel's counts and lists are looked at a thousand times a second, all of it 20\n"
    "times a second, by at most a tenth of a core. How many forks were missed is told by the\n"
    "kernel's own count. Ends with 4 when something was missed, or could not be looked at.",
    (
        ("qvmi --qmp /run/vm/qmp.sock events", "until Ctrl-C"),
        ("qvmi events --kinds loaded,unloaded --json", "modules, for a program"),
        ("qvmi events --exact --for 10", "each process, and what that costs the guest"),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.events:events",
    _declare,
    why_no_dump="nothing happens in a dump any more",
)
