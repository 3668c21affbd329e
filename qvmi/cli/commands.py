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
    CODE = "code"
    """A guest, asked by a user's own code, which runs here while the session goes on beside it."""
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
        prepare: the function, named as the handler is, that makes the handler's parameters of the
            arguments and of what the parser does not know; empty where they are the same.
        why_no_dump: why a dump cannot be asked for that; empty where it can.
        not_behind: options of every command that stand only before this one, which has others of
            that name.
    """

    name: str
    summary: str
    details: str
    examples: tuple[tuple[str, str], ...]
    needs: Needs
    handler: str
    declare: Callable[[ArgumentParser], None]
    prepare: str = ""
    why_no_dump: str = "it needs a machine that runs"
    not_behind: tuple[str, ...] = ()


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
        why_no_dump="",
    ),
    Command(
        "ps",
        "the guest's processes",
        "Lists the processes of the kernel's own task list, kernel threads among them. Names are\n"
        "what the guest says; what is not printable in them is escaped.",
        (
            ("qvmi --qmp /run/vm/qmp.sock ps", "a table"),
            ("qvmi ps --exact", "of one moment, for which the guest stands still"),
            ("qvmi --dump guest.core ps", "of a guest whose memory is in this file"),
            ("qvmi ps --json | jq '.items[] | select(.uid == 0).name'", "with QVMI_QMP set"),
        ),
        Needs.GUEST,
        "qvmi.cli.listings:ps",
        declarations.listing,
        why_no_dump="",
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
        why_no_dump="",
    ),
    Command(
        "modules",
        "the guest's kernel modules",
        "Lists the loaded modules as /proc/modules would: where their text is, and their size.",
        (("qvmi --qmp /run/vm/qmp.sock modules", "a table"),),
        Needs.GUEST,
        "qvmi.cli.listings:modules",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "threads",
        "the guest's threads",
        "Lists the threads of all processes: TID is the thread's own id, PID its process's.",
        (("qvmi --qmp /run/vm/qmp.sock threads", "a table"),),
        Needs.GUEST,
        "qvmi.cli.listings:threads",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "mounts",
        "the guest's mounted file systems",
        "Lists the mounts of every mount namespace, with paths from the namespace's root; of one\n"
        "process those that it sees, as /proc/PID/mountinfo does.",
        (
            ("qvmi --qmp /run/vm/qmp.sock mounts", "of all namespaces"),
            ("qvmi --qmp /run/vm/qmp.sock mounts 1", "as process 1 sees them"),
        ),
        Needs.GUEST,
        "qvmi.cli.views:mounts",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "files",
        "the open files of the guest's processes",
        "Lists every descriptor, and what it refers to as /proc/PID/fd names it: a path through the\n"
        "mounts, or such as socket:[4711].",
        (
            ("qvmi --qmp /run/vm/qmp.sock files", "of all processes"),
            ("qvmi --qmp /run/vm/qmp.sock files 1", "of process 1"),
            ("qvmi files --json | jq '.items[] | select(.deleted).path'", "deleted, but open"),
        ),
        Needs.GUEST,
        "qvmi.cli.views:files",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "sockets",
        "the sockets of the guest's processes",
        "Lists every socket that a process has open, of every network namespace: TCP, UDP and raw\n"
        "ones of IPv4 and IPv6, Unix, netlink and packet sockets.",
        (
            ("qvmi --qmp /run/vm/qmp.sock sockets", "of all processes"),
            ("qvmi sockets --json | jq '.items[] | select(.state == \"LISTEN\")'", "who listens"),
        ),
        Needs.GUEST,
        "qvmi.cli.views:sockets",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "maps",
        "the memory mappings of a process",
        "Lists what /proc/PID/maps would, but for [vsyscall], which is in no process's map.",
        (("qvmi --qmp /run/vm/qmp.sock maps 1", "of process 1"),),
        Needs.GUEST,
        "qvmi.cli.views:maps",
        declarations.listing_of_process,
        why_no_dump="",
    ),
    Command(
        "cmdline",
        "how the guest's processes were called",
        "Reads the words from each process's own memory, which may have written others there. What\n"
        "is not in memory is a gap.",
        (
            ("qvmi --qmp /run/vm/qmp.sock cmdline", "of all processes"),
            ("qvmi --qmp /run/vm/qmp.sock cmdline 1", "of process 1"),
        ),
        Needs.GUEST,
        "qvmi.cli.views:cmdline",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "env",
        "the environment of a process",
        "Lists the variables that a process was given when its program began.",
        (("qvmi --qmp /run/vm/qmp.sock env 1", "of process 1"),),
        Needs.GUEST,
        "qvmi.cli.views:env",
        declarations.listing_of_process,
        why_no_dump="",
    ),
    Command(
        "log",
        "the kernel's log",
        "Lists the records that the kernel still holds, as dmesg in the guest would.",
        (("qvmi --qmp /run/vm/qmp.sock log", "a table"),),
        Needs.GUEST,
        "qvmi.cli.views:log",
        declarations.listing,
        why_no_dump="",
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
        why_no_dump="a dump is memory alone, without registers",
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
        why_no_dump="",
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
        why_no_dump="",
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
        why_no_dump="",
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
        why_no_dump="",
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
        why_no_dump="it is a dump already",
    ),
    Command(
        "drgn",
        "a drgn session with the guest's own symbols and types",
        "Runs drgn on the guest as it is: what is typed, or CODE, or a script with its arguments, or\n"
        "standard input where that is no terminal. `prog` is the program, and drgn's helpers are\n"
        "there; types come from the kernel's BTF and symbols from its kallsyms, so that no debug\n"
        "information is needed. The guest runs meanwhile. Code that fails ends with 4. drgn's helpers\n"
        "trust the guest: one that is hostile may keep them busy for ever.\n"
        "Needs: pip install 'qvmi[drgn]'.",
        (
            ("qvmi --qmp /run/vm/qmp.sock drgn", "line by line"),
            ("qvmi drgn -c 'print(prog[\"init_task\"].comm)'", "with QVMI_QMP set"),
            ("qvmi --dump guest.core drgn script.py 1", "a script, over a dump"),
        ),
        Needs.CODE,
        "qvmi.cli.drgn_session:drgn",
        declarations.drgn,
        why_no_dump="",
    ),
    Command(
        "vol",
        "any Volatility 3 plugin on the guest",
        "Runs a plugin on the memory of the guest as it is, without a dump, a symbol file or a search.\n"
        "Plugins, their options, renderers and folders of your own are those of the command vol; a\n"
        "part of a name will do that no other has, and PLUGIN --help tells its options. A dump to look\n"
        "at is named before vol: several plugins have a --dump of their own.\n"
        "Needs: pip install 'qvmi[volatility]'.",
        (
            ("qvmi --qmp /run/vm/qmp.sock vol linux.pslist", "the processes"),
            ("qvmi vol -r csv linux.lsof --pid 1 2", "written by another renderer"),
            ("qvmi vol -p plugins linux.pslist", "plugins of your own are found here, too"),
            ("qvmi vol -o out linux.elfs --pid 1 --dump", "files it makes go to this folder"),
            ("qvmi --dump guest.core vol linux.pslist", "of a guest whose memory is in this file"),
        ),
        Needs.GUEST,
        "qvmi.cli.volatility:vol",
        declarations.vol,
        prepare="qvmi.cli.plugin_arguments:prepare",
        why_no_dump="",
        not_behind=("--dump",),
    ),
    Command(
        "gdb",
        "gdb on the live guest, with the names of its kernel and modules",
        "Starts gdb, which stops the guest, and gives it all symbols from the guest's own memory: no\n"
        "vmlinux is needed, and without one there are no types and no lines. Ctrl-C stops a guest\n"
        "that runs. When gdb ends, no breakpoint is left and the guest goes on if it ran before; so\n"
        "it does when gdb or qvmi is killed. With --json the commands given by -ex are done, and what\n"
        "each one printed is told. Ends with 4 when gdb ends with an error.",
        (
            ("qvmi --qmp /run/vm/qmp.sock gdb", "on this terminal"),
            ("qvmi gdb --batch -ex bt -ex 'info symbol vfs_read'", "with QVMI_QMP set"),
            ("qvmi gdb -ex 'break vfs_read' -ex continue -- -nx", "with an argument of gdb's own"),
        ),
        Needs.GUEST,
        "qvmi.cli.debugging:gdb",
        declarations.gdb,
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
        why_no_dump="nothing happens in a dump any more",
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
