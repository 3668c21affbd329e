"""The commands about codepacks and the keys that sign them, as data."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.declarations import keys_folder, pack_settings

__all__ = ["PACK_COMMANDS"]


def _pack(parser: ArgumentParser) -> None:
    """This adds the arguments of ``pack``."""
    parser.add_argument(
        "action", choices=["list", "info", "run", "sign", "verify"], help="what to do with it"
    )
    parser.add_argument(
        "what",
        metavar="PACK",
        nargs="?",
        type=values.given,
        help="its folder; for info and run also the name of one that comes with qvmi",
    )
    parser.add_argument(
        "--key", metavar="NAME", type=values.given, help="sign: the key, of your own"
    )
    parser.add_argument(
        "--days",
        metavar="N",
        type=values.count,
        help="sign: how long the signature holds; for ever",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=values.count,
        help="run: how many looks, from 1 on; what it takes",
    )
    parser.add_argument(
        "--interval", metavar="S", type=values.seconds, help="run: seconds between two looks"
    )
    parser.add_argument(
        "--policy", metavar="FILE", type=values.given, help="run: what codepacks are granted"
    )
    pack_settings(parser)
    keys_folder(parser)


def _keys(parser: ArgumentParser) -> None:
    """This adds the arguments of ``keys``."""
    parser.add_argument(
        "action", choices=["new", "list", "trust", "revoke"], help="what to do with it"
    )
    parser.add_argument(
        "what",
        metavar="KEY",
        nargs="?",
        type=values.given,
        help="new: its name; trust: its .pub file; revoke: its name or id",
    )
    keys_folder(parser)


PACK_COMMANDS: Final = (
    Command(
        "pack",
        "codepacks: list them, say what they need, run one, sign and verify them",
        "A codepack is a folder with a codepack.toml. list and info tell what comes with qvmi, info of a\n"
        "folder what is in it, believed or not. sign writes codepack.sig, which covers every file; verify\n"
        "says whether all is as somebody who is trusted has signed it, and ends with 1 where not.\n"
        "run lets one look at a guest (--qmp ADDR) until what it finds is confirmed or gone, or once at a\n"
        "dump (--dump FILE), and tells what that is: it ends with 1 where it found something, else with 4\n"
        "where it could not see all.",
        (
            ("qvmi pack info hidden-processes", "what it needs"),
            ("qvmi --qmp /run/vm/qmp.sock pack run hidden-processes", "what does it find?"),
            (
                "qvmi pack run known-malware --set known-malware.rules=./rules",
                "with your YARA rules; with QVMI_QMP set",
            ),
            ("qvmi --dump guest.core pack run ./my-pack --json", "in a dump, for a program"),
            ("qvmi pack sign ./my-pack --key alice --days 365", "so that others can run it"),
            ("qvmi pack verify ./my-pack --json", "for a program"),
        ),
        Needs.HOST,
        "qvmi.cli.handlers.packs:pack",
        _pack,
        # Of which a codepack is shown what the policy file grants it.
        grants=("disk", "network-capture"),
        on_guest=(("run", "qvmi.cli.handlers.pack_running:run"),),
    ),
    Command(
        "keys",
        "the keys that sign codepacks, and those that are believed",
        "new makes a key of your own. trust believes what a key has signed; revoke believes it no more,\n"
        "whenever it was signed, and for good.",
        (
            ("qvmi keys new alice", "prints the file to give to others"),
            ("qvmi keys trust alice.pub", "run what she signs"),
            ("qvmi keys revoke alice", "run it no more"),
        ),
        Needs.HOST,
        "qvmi.cli.handlers.keys:keys",
        _keys,
    ),
)
