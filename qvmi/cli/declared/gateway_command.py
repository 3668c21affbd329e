"""The command ``gateway`` as data: what it says of itself, and what it takes."""

from argparse import ArgumentParser
from typing import Final

from qvmi.cli.declared import values
from qvmi.cli.declared.command import Command, Needs

__all__ = ["GATEWAY"]


def _declare(parser: ArgumentParser) -> None:
    for option, what in (
        ("--qmp-listen", "serve clients that speak QMP on this Unix socket"),
        ("--gdb-listen", "serve debuggers on this Unix socket"),
    ):
        parser.add_argument(option, metavar="PATH", type=values.given, help=what)
    parser.add_argument(
        "--policy",
        metavar="FILE",
        type=values.given,
        help="what each client may do: [codepacks.gateway] in it, else its [default]",
    )
    for option, grants, what in (
        ("--may-pause", (), "let clients stop the guest, which all that gdb does takes"),
        (
            "--may-break",
            ("breakpoint",),
            "let gdb set breakpoints and watchpoints, and stop the guest",
        ),
        ("--may-write", ("write",), "let gdb write registers and memory, and stop the guest"),
    ):
        parser.add_argument(
            option,
            dest="grants",
            action="append_const",
            const=("pause", *grants),
            default=[],
            help=what,
        )


GATEWAY: Final = Command(
    "gateway",
    "let other tools look at a machine while qvmi holds its sockets",
    "Serves many clients on sockets of its own until Ctrl-C, or until QEMU has gone: qmp-shell, drgn\n"
    "and other qvmis on one, gdbs on the other. Only what was granted passes; the rest is refused, and\n"
    "with --audit logged. Who only looks over QMP stops nothing. The guest stands still while any\n"
    "client holds it, and goes on when the last one lets go, or is killed. Clients run as the same\n"
    "user; the sockets' folder must be writable by nobody else.",
    (
        ("qvmi --qmp /run/vm/qmp.sock gateway --qmp-listen gate/qmp", "look, and nothing else"),
        ("qvmi gateway --gdb-listen gate/gdb --may-break", "gdb -ex 'target remote gate/gdb'"),
        ("qvmi gateway --qmp-listen gate/qmp --policy policy.toml", "by ranges and rates"),
    ),
    Needs.MONITOR,
    "qvmi.cli.handlers.gateway:gateway",
    _declare,
)
