"""The commands as data: what each is called, what it says of itself, what it takes, what runs it."""

from typing import Final

from qvmi.cli.declared import declarations
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.disk_command import DISK
from qvmi.cli.declared.event_command import EVENTS
from qvmi.cli.declared.flows_command import FLOWS
from qvmi.cli.declared.gateway_command import GATEWAY
from qvmi.cli.declared.kernel_commands import KERNEL_COMMANDS
from qvmi.cli.declared.listing_commands import LISTING_COMMANDS
from qvmi.cli.declared.pack_commands import PACK_COMMANDS
from qvmi.cli.declared.respond_command import RESPOND
from qvmi.cli.declared.scan_command import SCAN
from qvmi.cli.declared.watch_command import WATCH

__all__ = ["COMMANDS"]

COMMANDS: Final = (
    *LISTING_COMMANDS,
    *KERNEL_COMMANDS,
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
        "qvmi.cli.handlers.registers:regs",
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
        "qvmi.cli.handlers.memory:read",
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
        "qvmi.cli.handlers.memory:translate",
        declarations.translate,
        why_no_dump="",
    ),
    Command(
        "symbol",
        "a symbol's address, or the symbol at an address",
        "Looks in the symbol tables of the kernel and its modules, both ways. An address is told as\n"
        "the symbol at or before it, how far behind that it is, and the module.",
        (
            ("qvmi --qmp /run/vm/qmp.sock symbol init_task", "where it is"),
            ("qvmi --qmp /run/vm/qmp.sock symbol 0xffffffff81000000", "what is there"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.symbols:symbol",
        declarations.symbol,
        why_no_dump="",
    ),
    SCAN,
    DISK,
    FLOWS,
    Command(
        "type",
        "how a struct, union, enum or typedef of the kernel is laid out",
        "Shows members with offsets and sizes in bytes, and the holes between them; of an enum its\n"
        "constants. Types are the kernel's own and those of its modules. Two structs of one name are\n"
        "told apart by nobody: the first is shown.",
        (
            ("qvmi --qmp /run/vm/qmp.sock type task_struct", "a struct"),
            ("qvmi --qmp /run/vm/qmp.sock type 'enum pid_type'", "an enum"),
            ("qvmi type sk_buff --json | jq .holes", "with QVMI_QMP set"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.types:type_layout",
        declarations.type_layout,
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
        "qvmi.cli.handlers.symbols:isf",
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
            ("qvmi --qmp /run/vm/qmp.sock dump --pid 1 init.core", "of process 1, for gdb"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.dumping:dump",
        declarations.dump,
        why_no_dump="",
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
        "qvmi.cli.handlers.drgn_session:drgn",
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
        "qvmi.cli.handlers.volatility:vol",
        declarations.vol,
        prepare="qvmi.cli.handlers.plugin_arguments:prepare",
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
        "qvmi.cli.handlers.debugging:gdb",
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
        "qvmi.cli.handlers.machines:find",
        declarations.nothing,
    ),
    WATCH,
    EVENTS,
    RESPOND,
    *PACK_COMMANDS,
    GATEWAY,
    Command(
        "doctor",
        "proves that a machine has no way to the bus, or names the way; checks this host's set-up",
        "Looks at what QEMU tells, and at what the kernel tells of QEMU and the broker: NICs, sockets\n"
        "and who is at their other ends, interfaces, shared memory and folders, file modes, listeners.\n"
        "Ends with 1 when there is a way, which is named, and with 4 when something could not be\n"
        "looked at: as root all can. It is true of the moment. Without --qmp only the set-up is\n"
        "checked, without --broker only what the machine itself has open.",
        (
            ("qvmi doctor", "is all there that qvmi needs?"),
            ("qvmi --qmp /run/vm/qmp.sock doctor", "what does this machine reach?"),
            ("qvmi --qmp /run/vm/qmp.sock doctor --broker /run/bus", "and the bus?"),
            ("qvmi doctor --broker 4711 --bridge qvmi0 --json", "with QVMI_QMP set"),
        ),
        Needs.SYSTEM,
        "qvmi.cli.handlers.doctor:doctor",
        declarations.doctor,
    ),
    Command(
        "audit",
        "check the log of what was done to guests and refused",
        "Checks an audit log, as --audit writes one: no record of it was altered, left out, added or\n"
        "moved. Prints how many there are, and the hash of the last one: noted elsewhere and given\n"
        "with --head, it shows later that none was cut off. Ends with 1 when something is wrong.",
        (
            ("qvmi audit verify audit.log", "is it as it was written?"),
            ("qvmi audit verify audit.log --json", "the same, for a program"),
        ),
        Needs.HOST,
        "qvmi.cli.handlers.auditing:audit",
        declarations.audit,
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
        "qvmi.cli.handlers.completion:completion",
        declarations.completion,
    ),
)
