"""The arguments of each command, named as the parameters of what runs it."""

from argparse import ArgumentParser

from qvmi.cli import values
from qvmi.cli.words import ALL_PACKS, PACKS, SHELLS

__all__ = [
    "completion",
    "dump",
    "isf",
    "listing",
    "nothing",
    "read",
    "regs",
    "symbol",
    "translate",
    "watch",
]


def nothing(_: ArgumentParser) -> None:
    """This adds no arguments."""


def listing(parser: ArgumentParser) -> None:
    """This adds what every listing takes."""
    parser.add_argument(
        "--exact",
        action="store_true",
        help="stop the guest for the moment of looking, and see that moment alone",
    )


def dump(parser: ArgumentParser) -> None:
    """This adds the arguments of ``dump``."""
    parser.add_argument("path", metavar="FILE", type=values.new_file, help="where to write it")
    parser.add_argument(
        "--live", action="store_true", help="let the guest run: a mixture of many moments"
    )


def regs(parser: ArgumentParser) -> None:
    """This adds the arguments of ``regs``."""
    parser.add_argument(
        "--vcpu", metavar="N", type=values.count, help="only this vCPU; the first is 0"
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="by the gdbstub, which has all registers: the guest stands still for it",
    )


def read(parser: ArgumentParser) -> None:
    """This adds the arguments of ``read``."""
    parser.add_argument(
        "place", metavar="ADDR|SYMBOL[+OFF]", type=values.place, help="where to begin"
    )
    parser.add_argument(
        "size", metavar="SIZE", type=values.size, nargs="?", default=256, help="bytes; 256"
    )
    space = parser.add_mutually_exclusive_group()
    space.add_argument(
        "--physical",
        dest="space",
        action="store_const",
        const=values.Space("physical"),
        default=values.Space("kernel"),
        help="ADDR is a physical address",
    )
    space.add_argument(
        "--user",
        dest="space",
        metavar="PID",
        type=values.user_space,
        default=values.Space("kernel"),
        help="ADDR is an address of this process",
    )
    form = parser.add_mutually_exclusive_group()
    for name, what in (
        ("raw", "the bytes themselves, for a file or pipe"),
        ("hex", "hexadecimal digits only, on one line"),
    ):
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, default="dump", help=what
        )


def translate(parser: ArgumentParser) -> None:
    """This adds the arguments of ``translate``."""
    parser.add_argument(
        "place", metavar="ADDR|SYMBOL[+OFF]", type=values.place, help="what to translate"
    )
    parser.add_argument(
        "--pid",
        dest="space",
        metavar="PID",
        type=values.user_space,
        default=values.Space("kernel"),
        help="by the page tables of this process",
    )


def symbol(parser: ArgumentParser) -> None:
    """This adds the arguments of ``symbol``."""
    parser.add_argument(
        "place", metavar="NAME|ADDR", type=values.place, help="a symbol's name, or an address"
    )


def isf(parser: ArgumentParser) -> None:
    """This adds the arguments of ``isf``."""
    parser.add_argument(
        "-o",
        "--output",
        dest="path",
        metavar="FILE",
        type=values.new_file,
        required=True,
        help="the file to write; compressed when it ends in .xz",
    )


def watch(parser: ArgumentParser) -> None:
    """This adds the arguments of ``watch``."""
    parser.add_argument(
        "packs",
        metavar="PACK",
        nargs="*",
        choices=(ALL_PACKS, *PACKS),
        default=ALL_PACKS,
        help="codepacks; all",
    )
    parser.add_argument(
        "--interval", metavar="S", type=values.seconds, help="seconds between two looks"
    )
    parser.add_argument(
        "--for", dest="duration_s", metavar="S", type=values.seconds, help="end after so long"
    )


def completion(parser: ArgumentParser) -> None:
    """This adds the arguments of ``completion``."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
