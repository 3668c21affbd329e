"""The command ``watch`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser, ArgumentTypeError
from textwrap import fill
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.declarations import keys_folder, pack_settings
from qvmi.cli.declared.words import PACK_GROUPS, PACKS, PLACEMENTS, USUAL_PACKS

__all__ = ["WATCH"]

_PACKS_TEXT: Final = fill(f"Codepacks: {', '.join(PACKS)}.", 92, break_on_hyphens=False)


def _pack_name(text: str) -> str:
    """This reads the name of a codepack that comes with qvmi, or of a group of them."""
    known = (*PACK_GROUPS, *PACKS)
    if text in known:
        return text
    from qvmi.settings import nearest

    raise ArgumentTypeError(f"there is no codepack {text!r}{nearest(text, known)}")


def _declare(parser: ArgumentParser) -> None:
    parser.add_argument(
        "packs",
        metavar="PACK",
        nargs="*",
        type=_pack_name,
        choices=(*PACK_GROUPS, *PACKS),
        default=USUAL_PACKS,
        help="codepacks, or all of them; the usual one, which is hidden-processes",
    )
    parser.add_argument(
        "--interval",
        metavar="S",
        type=values.interval,
        help="seconds from look to look of qvmi's own codepacks; else, and of others, as in the manifest",
    )
    parser.add_argument(
        "--for",
        dest="duration_s",
        metavar="S",
        type=values.seconds,
        help="end after so many seconds; at Ctrl-C",
    )
    _loaded(parser)
    pack_settings(parser)
    _placement(parser)


def _loaded(parser: ArgumentParser) -> None:
    """This adds what says which codepacks of others run, and which of all, and what they may do."""
    parser.add_argument(
        "--load",
        metavar="FOLDER",
        type=values.given,
        action="append",
        default=[],
        help="a codepack of somebody else's, which must be signed; may be given again",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,…",
        type=values.names,
        default=(),
        help="of all these, run only those; else those that are loaded run beside qvmi's own",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        type=values.given,
        help="a TOML file of what codepacks are granted; they may only read",
    )
    keys_folder(parser)


def _placement(parser: ArgumentParser) -> None:
    """This adds what says where codepacks run, and over which broker they are heard."""
    parser.add_argument(
        "--bus",
        metavar="URL",
        type=values.given,
        help="a broker that exists: mqtt://, mqtts:// or unix://, with USER@ and ?secret-file=FILE",
    )
    parser.add_argument(
        "--placement",
        choices=PLACEMENTS,
        default=PLACEMENTS[0],
        help="where codepacks run: in this process, or each in one of its own",
    )
    parser.add_argument(
        "--state",
        metavar="FOLDER",
        type=values.given,
        help="for what is kept, as which alerts stand; of a manager and of --respond /var/lib/qvmi of"
        " root's, else ~/.local/state/qvmi",
    )
    parser.add_argument(
        "--log", metavar="FILE", type=values.given, help="append every message, as lines of JSON"
    )
    parser.add_argument(
        "--playbook",
        metavar="FILE",
        type=values.given,
        help="what alerts lead to; it is only told what would be done, unless",
    )
    parser.add_argument(
        "--respond",
        action="store_true",
        help="do it, as far as [codepacks.response] of the policy grants it",
    )
    parser.add_argument(
        "--allow-unproven-isolation",
        action="store_true",
        help="run them though nothing proves that the guest cannot reach the bus; alerts say so",
    )


WATCH: Final = Command(
    "watch",
    "codepacks on, alerts as they come",
    "Runs codepacks until Ctrl-C, and prints alerts and their clearing as they come; with\n"
    "--json one document a line, each with its kind: alert, cleared, status, response. Ends with 1\n"
    "when there was an alert, else with 4 when a codepack could not see all it wanted to.\n"
    "Without a name it runs hidden-processes alone; `all` runs all that come with qvmi.\n"
    f"{_PACKS_TEXT}\n"
    "Others' are in folders, and must be signed by a key that is trusted. What they are granted\n"
    "says the policy: without one, they may only read, and all leaves out who is shown more.",
    (
        ("qvmi --qmp /run/vm/qmp.sock watch", "until Ctrl-C"),
        ("qvmi --qmp /run/vm/qmp.sock watch hidden-processes --for 60 --json", "a minute"),
        (
            "qvmi --qmp /run/vm/qmp.sock watch --load ./my-pack --policy policy.toml",
            "others too",
        ),
        (
            "qvmi --qmp /run/vm/qmp.sock watch --playbook book.toml --policy policy.toml",
            "what would be done about it? --respond does it",
        ),
    ),
    Needs.GUEST,
    "qvmi.cli.handlers.watching:watch",
    _declare,
    why_no_dump="nothing happens in a dump any more",
    # Of which a codepack is shown what the policy file grants it.
    grants=("disk", "network-capture"),
)
