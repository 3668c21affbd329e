"""The command line as argparse reads it: options that go with every command, before or after it."""

import os
from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Container, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from qvmi import __version__
from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.commands import COMMANDS
from qvmi.errors import UsageError

__all__ = [
    "AUDIT_ENVIRONMENT",
    "ENVIRONMENT",
    "GDB_ENVIRONMENT",
    "Options",
    "Request",
    "TextWanted",
    "make_parser",
    "parse",
]

ENVIRONMENT: Final = "QVMI_QMP"
"""The environment variable that stands for ``--qmp``."""
GDB_ENVIRONMENT: Final = "QVMI_GDB"
"""The environment variable that stands for ``--gdb``."""
AUDIT_ENVIRONMENT: Final = "QVMI_AUDIT"
"""The environment variable that stands for ``--audit``."""

_COLUMN: Final = 30  # where help texts begin: behind the longest option

_DESCRIPTION: Final = """\
Watches a QEMU virtual machine from outside: which Linux runs there and what runs in it.
The guest needs no agent and no preparation, and is not stopped."""

_CLOSING: Final = f"""\
examples:
  qvmi find                               # which machines run here?
  qvmi --qmp /run/vm/qmp.sock info        # what runs in this one?
  export {ENVIRONMENT}=/run/vm/qmp.sock        # and from now on
  qvmi ps
  qvmi modules --json | jq .items[].name

exit codes:
  0 fine, 1 found something bad (alerts), 2 usage, 3 could not attach, 4 could not look (gaps);
  70 qvmi itself failed (a bug), 130 Ctrl-C, 141 the reader of the output ended.

Addresses are hexadecimal in text and integers in JSON. QVMI_DEBUG=1 shows where an error arose."""


class _Option(NamedTuple):
    """This is an option that goes with every command."""

    flag: str
    text: str
    details: dict[str, Any]


_OPTIONS: Final = (
    _Option(
        "--qmp",
        f"QMP socket: PATH, HOST:PORT, libvirt:DOMAIN; or {ENVIRONMENT}",
        {"metavar": "ADDR", "type": values.given},
    ),
    _Option(
        "--gdb",
        f"its gdbstub, asked where nothing else tells; the guest stands still; or {GDB_ENVIRONMENT}",
        {"metavar": "ADDR", "type": values.given},
    ),
    _Option(
        "--dump",
        "a dump instead of a machine: ELF core, LiME, AVML, raw RAM",
        {"metavar": "FILE", "type": values.given},
    ),
    _Option(
        "--raw-ram",
        "the dump is raw RAM; SIZE of it lies below 4 GiB (auto: find out)",
        {"metavar": "SIZE|auto", "type": values.raw_ram},
    ),
    _Option("--json", "one JSON document on stdout, nothing else", {"action": "store_true"}),
    _Option(
        "--isf",
        "Volatility 3 symbol file, for a kernel without BTF",
        {"metavar": "FILE", "type": values.given},
    ),
    _Option(
        "--audit",
        f"log of what is done to guests and refused; or {AUDIT_ENVIRONMENT}",
        {"metavar": "FILE", "type": values.given},
    ),
    _Option(
        "--timeout",
        "seconds until QEMU has greeted; 3 (each later answer: 5)",
        {"metavar": "S", "type": values.seconds},
    ),
    _Option(
        "--no-cache",
        "neither use nor keep kernel profiles",
        {"action": "store_false", "dest": "cache"},
    ),
)


class Options(NamedTuple):
    """These are the options that go with every command.

    Args:
        qmp: the address of the machine's QMP socket; None where none was named.
        gdb: that of its gdbstub; None where none was named.
        json: print JSON.
        isf: a symbol file to use instead of the guest's own tables.
        timeout_s: how long connecting may take, QEMU's greeting included; None for as long as
            `qvmi.attach` allows. It does not bound what QEMU answers later.
        use_cache: whether profiles of kernels seen before are used and kept.
        dump: a dump's file to look at instead of a machine.
        raw_ram: how the dump's file is raw RAM; None where it says itself what it is.
        audit: a file for the audit log; None for none.
    """

    qmp: str | None
    gdb: str | None
    json: bool
    isf: str | None
    timeout_s: float | None
    use_cache: bool
    dump: str | None = None
    raw_ram: values.RawRam | None = None
    audit: str | None = None


class Request(NamedTuple):
    """This is what the command line asks for.

    Args:
        command: which command.
        options: those that go with every command.
        arguments: the command's own, by name.
    """

    command: Command
    options: Options
    arguments: dict[str, Any]


class TextWanted(Exception):
    """The command line asks for nothing but a text: the help, or the version.

    Attributes:
        text: its lines.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Parser(ArgumentParser):
    """This raises what it would print, so that there is one place for output and exit codes."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")

    def print_help(self, file: object = None) -> NoReturn:
        del file
        raise TextWanted(self.format_help())


class _Version(Action):
    """This is the option that asks for the version."""

    def __call__(self, *_: object) -> NoReturn:
        raise TextWanted(f"qvmi {__version__}")


def parse(arguments: Sequence[str]) -> Request:
    """This reads the arguments behind the program's name.

    Raises:
        UsageError: they make no sense.
        TextWanted: help or the version was asked for.
    """
    parser = make_parser()
    known, rest = parser.parse_known_args(arguments, Namespace())
    found = vars(known)
    name = found.pop("command")
    command = next(command for command in COMMANDS if command.name == name)
    if command.late and found[command.late] is None and len(rest) == 1 and rest[0][:1] != "-":
        found[command.late] = rest.pop()
    if rest and not command.prepare:
        raise UsageError(f"unrecognized arguments: {' '.join(rest)} (see: qvmi {name} --help)")
    dump, raw_ram = found.pop("dump", None), found.pop("raw_ram", None)
    if dump is not None and "qmp" in found:
        raise UsageError(
            "--qmp names a machine and --dump a file: which of them is to be looked at?"
        )
    if dump is None and raw_ram is not None:
        raise UsageError("--raw-ram tells how to read a dump: name one with --dump")
    options = Options(
        qmp=found.pop("qmp", None) or os.environ.get(ENVIRONMENT) or None,
        gdb=found.pop("gdb", None) or os.environ.get(GDB_ENVIRONMENT) or None,
        json=found.pop("json", False),
        isf=found.pop("isf", None),
        timeout_s=found.pop("timeout", None),
        use_cache=found.pop("cache", True),
        dump=dump,
        raw_ram=raw_ram,
        audit=found.pop("audit", None) or os.environ.get(AUDIT_ENVIRONMENT) or None,
    )
    if command.prepare:
        found = _prepared(command, found, rest)
    return Request(command, options, found)


def _prepared(command: Command, found: dict[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    """This lets a command read what it alone understands, before anything is attached to."""
    from importlib import import_module

    module, _, function = command.prepare.partition(":")
    prepared: dict[str, Any] = getattr(import_module(module), function)(found, rest)
    return prepared


def make_parser() -> ArgumentParser:
    """This makes the parser; the completion scripts are made of it, too."""
    parser = _Parser(
        prog="qvmi",
        description=_DESCRIPTION,
        epilog=_CLOSING,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=SUPPRESS, help="print qvmi's version"
    )
    _add_options(parser, Needs.GUEST)
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[:1].upper()}{command.summary[1:]}.\n\n{command.details}",
            epilog=_examples(command),
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=not command.prepare,
        )
        if command.prepare:
            own.set_defaults(usage_text=own.format_help)
        command.declare(own)
        needs = Needs.GUEST if command.on_guest else command.needs
        _add_options(own, needs, but=command.not_behind)
    return parser


def _add_options(parser: ArgumentParser, needs: Needs, *, but: Container[str] = ()) -> None:
    """This adds the options that every command takes, and shows those that matter to it.

    None has a default here, so that one before the command is not overwritten behind it.
    """
    group = parser.add_argument_group("options of every command")
    about_machine = needs not in {Needs.HOST, Needs.NOTHING}
    for option in _OPTIONS:
        if option.flag in but:
            continue
        shown = about_machine or (needs is Needs.HOST and option.flag == "--json")
        group.add_argument(
            option.flag,
            help=option.text if shown else SUPPRESS,
            default=SUPPRESS,
            **option.details,
        )


def _examples(command: Command) -> str:
    longest = max(len(line) for line, _ in command.examples)
    lines = [f"  {line:<{longest}}  # {what}" for line, what in command.examples]
    return "\n".join(["examples:", *lines])


def _formatter(prog: str) -> RawDescriptionHelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=_COLUMN)
