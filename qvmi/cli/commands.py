"""The commands as data: what each is called, what it says of itself, what it takes, what runs it."""

from argparse import ArgumentParser
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from qvmi.cli import declarations
from qvmi.cli.words import PACKS

__all__ = ["COMMANDS", "Command", "Needs"]


class Needs(StrEnum):
    """This is what a command works on."""

    GUEST = "guest"
    """A machine, and the system that runs in it."""
    MACHINE = "machine"
    """A machine, whatever runs in it."""
    HOST = "host"
    """This host alone."""
    NOTHING = "nothing"


# dataclasses would cost a quarter of the time that `qvmi --version` may take.
class Command(NamedTuple):
    """This is one command.

    Args:
        name: as it is typed.
        summary: one line, for the list of commands.
        details: what else there is to know, for the command's own help.
        examples: command lines, each with what it is for.
        needs: what it works on.
        handler: the function that runs it, as ``module:function``: imported only then.
        declare: adds its own arguments; their names are those of the handler's parameters.
    """

    name: str
    summary: str
    details: str
    examples: tuple[tuple[str, str], ...]
    needs: Needs
    handler: str
    declare: Callable[[ArgumentParser], None]


COMMANDS: Final = (
    Command(
        "info",
        "what was found, how, and the evidence",
        "Names the system that runs in the machine, tells how its memory is read and why not in a\n"
        "faster way, and lists why all this is believed. Where no system is recognised it prints\n"
        "what is known of the machine, and ends with 4.",
        (
            ("qvmi --qmp /run/vm/qmp.sock info", "the machine behind this socket"),
            ("qvmi --qmp localhost:4444 info --json", "the same over TCP, for a program"),
        ),
        Needs.GUEST,
        "qvmi.cli.facts:info",
        declarations.nothing,
    ),
    Command(
        "ps",
        "the guest's processes",
        "Lists the processes of the kernel's own task list, kernel threads among them. Names are\n"
        "what the guest says; what is not printable in them is escaped.",
        (
            ("qvmi --qmp /run/vm/qmp.sock ps", "a table"),
            ("qvmi ps --exact", "of one moment, for which the guest stands still"),
            ("qvmi ps --json | jq '.items[] | select(.uid == 0).name'", "with QVMI_QMP set"),
        ),
        Needs.GUEST,
        "qvmi.cli.listings:ps",
        declarations.listing,
    ),
    Command(
        "tree",
        "the guest's processes as a tree",
        "Lists each process below its parent; those whose parent is not listed stand at the top.\n"
        "As JSON: the processes in the order of the tree, each with its depth.",
        (("qvmi --qmp /run/vm/qmp.sock tree", "the whole family"),),
        Needs.GUEST,
        "qvmi.cli.listings:tree",
        declarations.listing,
    ),
    Command(
        "modules",
        "the guest's kernel modules",
        "Lists the loaded modules as /proc/modules would: where their text is, and their size.",
        (("qvmi --qmp /run/vm/qmp.sock modules", "a table"),),
        Needs.GUEST,
        "qvmi.cli.listings:modules",
        declarations.listing,
    ),
    Command(
        "threads",
        "the guest's threads",
        "Lists the threads of all processes: TID is the thread's own id, PID its process's.",
        (("qvmi --qmp /run/vm/qmp.sock threads", "a table"),),
        Needs.GUEST,
        "qvmi.cli.listings:threads",
        declarations.listing,
    ),
    Command(
        "regs",
        "the vCPUs' registers",
        "Reads the registers without stopping the guest. A register that QEMU does not print in\n"
        "the present mode of the vCPU is shown as - (null in JSON); of an aarch64 vCPU these are\n"
        "all system registers.",
        (
            ("qvmi --qmp /run/vm/qmp.sock regs --system", "those too, in a pause that is told"),
            ("qvmi --qmp /run/vm/qmp.sock regs", "all vCPUs"),
            ("qvmi --qmp /run/vm/qmp.sock regs --vcpu 0 --json", "the first one, for a program"),
        ),
        Needs.MACHINE,
        "qvmi.cli.registers:regs",
        declarations.regs,
    ),
    Command(
        "read",
        "bytes of the guest's memory",
        "Reads at a kernel address or symbol, at a physical address, or at an address of one\n"
        "process. An address is 0x…, decimal, or the 16 digits that /proc/kallsyms prints; SIZE\n"
        "may end in K, M or G.",
        (
            ("qvmi --qmp /run/vm/qmp.sock read linux_banner", "256 bytes at a symbol"),
            ("qvmi --qmp /run/vm/qmp.sock read init_task+0x10 64", "64 bytes behind one"),
            ("qvmi --qmp /run/vm/qmp.sock read --physical 0x1000 4K --raw > page", "a page"),
            ("qvmi --qmp /run/vm/qmp.sock read --user 1 0x400000 16 --hex", "of process 1"),
        ),
        Needs.GUEST,
        "qvmi.cli.memory:read",
        declarations.read,
    ),
    Command(
        "translate",
        "the page-table walk of an address",
        "Prints every entry the walk reads and where it leads. An address that is not mapped ends\n"
        "with 4, behind the entries that lead to where it is not.",
        (
            ("qvmi --qmp /run/vm/qmp.sock translate linux_banner", "a kernel address"),
            ("qvmi --qmp /run/vm/qmp.sock translate 0x400000 --pid 1", "an address of process 1"),
        ),
        Needs.GUEST,
        "qvmi.cli.memory:translate",
        declarations.translate,
    ),
    Command(
        "symbol",
        "a symbol's address, or the symbol at an address",
        "Looks in the kernel's own symbol table, both ways.",
        (
            ("qvmi --qmp /run/vm/qmp.sock symbol init_task", "where it is"),
            ("qvmi --qmp /run/vm/qmp.sock symbol 0xffffffff81000000", "what is there"),
        ),
        Needs.GUEST,
        "qvmi.cli.symbols:symbol",
        declarations.symbol,
    ),
    Command(
        "isf",
        "write a Volatility 3 symbol file of the guest's kernel",
        "Writes all symbols and types of the kernel that runs, taken from its memory.",
        (
            ("qvmi --qmp /run/vm/qmp.sock isf -o symbols/linux/guest.json.xz", "for Volatility"),
            ("qvmi --qmp /run/vm/qmp.sock --isf guest.json.xz ps", "and back again"),
        ),
        Needs.GUEST,
        "qvmi.cli.symbols:isf",
        declarations.isf,
    ),
    Command(
        "dump",
        "write the guest's memory to a file",
        "Writes an ELF core that drgn, gdb and Volatility open. The guest stands still while\n"
        "it is written, some 0.2 s for each 100 MB that it uses, and goes on whatever happens. What\n"
        "the guest has never written to becomes a hole in the file.",
        (
            ("qvmi --qmp /run/vm/qmp.sock dump guest.core", "of one moment"),
            ("qvmi --qmp /run/vm/qmp.sock dump --live guest.core", "without stopping the guest"),
        ),
        Needs.GUEST,
        "qvmi.cli.dumping:dump",
        declarations.dump,
    ),
    Command(
        "find",
        "the QEMUs that run on this host, and their sockets",
        "Looks through the host's processes; those of other users tell less. Nothing is opened.",
        (
            ("qvmi find", "a table"),
            ("qvmi find --json", "for a program"),
        ),
        Needs.HOST,
        "qvmi.cli.machines:find",
        declarations.nothing,
    ),
    Command(
        "watch",
        "codepacks on, alerts as they come",
        "Runs codepacks until Ctrl-C, and prints alerts and their clearing as they come; with\n"
        "--json one document a line, each with its kind: alert, cleared or status. Ends with 1\n"
        "when there was an alert, else with 4 when a codepack could not see all it wanted to.\n"
        f"Codepacks: {', '.join(PACKS)}.",
        (
            ("qvmi --qmp /run/vm/qmp.sock watch", "until Ctrl-C"),
            ("qvmi --qmp /run/vm/qmp.sock watch hidden-processes --for 60 --json", "a minute"),
        ),
        Needs.GUEST,
        "qvmi.cli.watching:watch",
        declarations.watch,
    ),
    Command(
        "completion",
        "a script that completes qvmi's words in a shell",
        "Prints the script.",
        (
            ('eval "$(qvmi completion bash)"', "in ~/.bashrc"),
            ('eval "$(qvmi completion zsh)"', "in ~/.zshrc, behind compinit"),
            ("qvmi completion fish > ~/.config/fish/completions/qvmi.fish", "once"),
        ),
        Needs.NOTHING,
        "qvmi.cli.completion:completion",
        declarations.completion,
    ),
)
