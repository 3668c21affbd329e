"""The arguments of each command, named as the parameters of what runs it."""

from argparse import REMAINDER, Action, ArgumentParser, Namespace

from qvmi.cli.declared import values
from qvmi.cli.declared.words import SHELLS

__all__ = [
    "audit",
    "cached",
    "completion",
    "doctor",
    "drgn",
    "dump",
    "gdb",
    "isf",
    "keys_folder",
    "listing",
    "listing_of_process",
    "listing_of_processes",
    "nothing",
    "pack_settings",
    "percpu",
    "read",
    "recover",
    "regs",
    "stack",
    "symbol",
    "translate",
    "type_layout",
    "vol",
]


class _IfNamed(Action):
    """This leaves alone what an option of the same name has set, where it is left out itself."""

    def __call__(self, _: object, found: Namespace, given: object, __: object = None) -> None:
        if given is not None:
            setattr(found, self.dest, given)


def audit(parser: ArgumentParser) -> None:
    """This adds the arguments of ``audit``."""
    parser.add_argument("action", metavar="verify", choices=["verify"], help="what to do with it")
    parser.add_argument("path", metavar="FILE", type=values.given, help="the log")
    parser.add_argument(
        "--head", metavar="HASH", type=values.sha256, help="of a record that must be in it"
    )


def nothing(_: ArgumentParser) -> None:
    """This adds no arguments."""


def listing(parser: ArgumentParser) -> None:
    """This adds what every listing takes."""
    parser.add_argument(
        "--exact",
        action="store_true",
        help="stop the guest for the moment of looking, and see that moment alone",
    )


def listing_of_process(parser: ArgumentParser) -> None:
    """This adds what a listing of one process takes."""
    _process(parser, "the process", required=True)
    listing(parser)


def listing_of_processes(parser: ArgumentParser) -> None:
    """This adds what a listing of one process or of all takes."""
    _process(parser, "only this process; all", required=False)
    listing(parser)


def _process(parser: ArgumentParser, what: str, *, required: bool) -> None:
    """This adds a process, which may be named with ``--pid`` too, as other commands have it."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument(
        "pid", metavar="PID", type=values.count, nargs="?", action=_IfNamed, help=what
    )
    group.add_argument("--pid", metavar="PID", type=values.count, help="the same")


def percpu(parser: ArgumentParser) -> None:
    """This adds the arguments of ``percpu``."""
    parser.add_argument("name", metavar="NAME", help="a variable of the kernel, such as runqueues")
    parser.add_argument("--cpu", metavar="N", type=values.count, help="only this CPU's; all")
    listing(parser)


def cached(parser: ArgumentParser) -> None:
    """This adds the arguments of ``cached``."""
    parser.add_argument(
        "--under",
        metavar="PATH",
        type=values.folder_name,
        help="only files in this folder and below; all, those without a path too",
    )
    listing(parser)


def recover(parser: ArgumentParser) -> None:
    """This adds the arguments of ``recover``."""
    parser.add_argument(
        "wanted",
        metavar="PATH|INODE",
        type=values.file_name,
        help="a file as `cached` lists it: its path, its inode, or MAJOR:MINOR:INODE",
    )
    parser.add_argument(
        "-o",
        "--output",
        dest="path",
        metavar="FILE",
        type=values.new_file,
        required=True,
        help="the file to write",
    )
    parser.add_argument(
        "--exact", action="store_true", help="stop the guest meanwhile: a file of one moment"
    )


def stack(parser: ArgumentParser) -> None:
    """This adds the arguments of ``stack``."""
    listing_of_process(parser)
    parser.add_argument(
        "--thread", metavar="TID", type=values.count, help="of this thread; the process's first"
    )


def dump(parser: ArgumentParser) -> None:
    """This adds the arguments of ``dump``."""
    parser.add_argument("path", metavar="FILE", type=values.new_file, help="where to write it")
    parser.add_argument(
        "--pid", metavar="PID", type=values.count, help="only the memory of this process"
    )
    parser.add_argument(
        "--live", action="store_true", help="let the guest run: a mixture of many moments"
    )


def gdb(parser: ArgumentParser) -> None:
    """This adds the arguments of ``gdb``."""
    parser.add_argument(
        "--batch", action="store_true", help="end behind the last of the commands given"
    )
    parser.add_argument(
        "-ex",
        "--eval-command",
        dest="commands",
        metavar="CMD",
        action="append",
        default=[],
        help="a command of gdb's, done once it has the guest; may be given again",
    )
    parser.add_argument(
        "--write",
        dest="may_write",
        action="store_true",
        help="let gdb write registers and memory, and use QEMU's monitor",
    )
    parser.add_argument(
        "arguments", metavar="GDBARG", nargs="*", help="behind --: more arguments of gdb's own"
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


def type_layout(parser: ArgumentParser) -> None:
    """This adds the arguments of ``type``."""
    parser.add_argument(
        "name", metavar="NAME", type=values.given, help="of the type, with struct before it or not"
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


def drgn(parser: ArgumentParser) -> None:
    """This adds the arguments of ``drgn``."""
    parser.add_argument("-c", "--code", metavar="CODE", help="Python code to run")
    parser.add_argument(
        "script",
        metavar="SCRIPT",
        nargs=REMAINDER,
        help="a script to run, with its arguments; qvmi's own options stand before it",
    )


def vol(parser: ArgumentParser) -> None:
    """This adds the arguments of ``vol``, named as those of the command of that name.

    What else is typed is read by `qvmi.cli.handlers.plugin_arguments`: only the plugin knows it.
    """
    parser.add_argument("plugin", metavar="PLUGIN", nargs="?", help="its name, or a part of it")
    parser.add_argument(
        "-h", "--help", action="store_true", help="this, and all plugins; behind one: its options"
    )
    parser.add_argument(
        "-r", "--renderer", metavar="NAME", default="quick", help="how the rows are written; quick"
    )
    parser.add_argument(
        "-p", "--plugin-dirs", metavar="FOLDERS", default="", help="of plugins, with ; between them"
    )
    parser.add_argument(
        "-o",
        "--output-dir",
        metavar="FOLDER",
        default=".",
        help="for the files that a plugin makes",
    )
    parser.add_argument(
        "--filters", metavar="FILTER", action="append", default=[], help="[+-]COLUMN,PATTERN[!]"
    )
    parser.add_argument(
        "--hide-columns", metavar="COLUMN", nargs="*", action="extend", help="leave these out"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="taken; no progress is shown")
    parser.add_argument(
        "--exact", action="store_true", help="see one moment, for which the guest stands still"
    )


def doctor(parser: ArgumentParser) -> None:
    """This adds the arguments of ``doctor``."""
    parser.add_argument(
        "--broker",
        metavar="PID|PATH",
        type=values.given,
        help="of the bus: its broker's pid, its socket, or the folder of that",
    )
    parser.add_argument(
        "--bridge",
        metavar="NAME",
        type=values.given,
        help="the bus's bridge, where it has one; with --broker",
    )
    parser.add_argument(
        "--pid", metavar="PID", type=values.count, help="QEMU's, where the socket does not tell it"
    )


def keys_folder(parser: ArgumentParser) -> None:
    """This adds where keys are."""
    parser.add_argument(
        "--keys",
        metavar="FOLDER",
        type=values.given,
        help="the folder of keys; qvmi/keys in $XDG_CONFIG_HOME, or in ~/.config",
    )


def pack_settings(parser: ArgumentParser) -> None:
    """This adds the options of codepacks."""
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="PACK.OPTION=VALUE",
        type=values.pack_setting,
        action="append",
        default=[],
        help="an option of a codepack, as its manifest names it; of a list, one of its values",
    )


def completion(parser: ArgumentParser) -> None:
    """This adds the arguments of ``completion``."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
