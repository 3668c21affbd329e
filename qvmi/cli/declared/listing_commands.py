"""The commands that tell what was found and list what the guest has, as data."""

from typing import Final

from qvmi.cli.declared import declarations
from qvmi.cli.declared.command import Command, Needs

__all__ = ["LISTING_COMMANDS"]

LISTING_COMMANDS: Final = (
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
        "qvmi.cli.handlers.facts:info",
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
        "qvmi.cli.handlers.listings:ps",
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
        "qvmi.cli.handlers.listings:tree",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "modules",
        "the guest's kernel modules",
        "Lists the loaded modules as /proc/modules would: where their text is, and their size.",
        (("qvmi --qmp /run/vm/qmp.sock modules", "a table"),),
        Needs.GUEST,
        "qvmi.cli.handlers.listings:modules",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "threads",
        "the guest's threads",
        "Lists the threads of all processes: TID is the thread's own id, PID its process's.",
        (("qvmi --qmp /run/vm/qmp.sock threads", "a table"),),
        Needs.GUEST,
        "qvmi.cli.handlers.listings:threads",
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
        "qvmi.cli.handlers.views:mounts",
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
        "qvmi.cli.handlers.views:files",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "sockets",
        "the guest's sockets",
        "Lists every socket that a process has open, of every network namespace, and then those that\n"
        "nobody has, such as connections in TIME_WAIT: TCP, UDP and raw ones of IPv4 and IPv6, Unix,\n"
        "netlink and packet sockets. Of a process its own.",
        (
            ("qvmi --qmp /run/vm/qmp.sock sockets", "of all processes"),
            ("qvmi sockets --json | jq '.items[] | select(.state == \"LISTEN\")'", "who listens"),
            ("qvmi sockets --json | jq '.items[] | select(.pid == null)'", "what is nobody's"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.views:sockets",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "maps",
        "the memory mappings of the guest's processes",
        "Lists what /proc/PID/maps would, but for [vsyscall], which is in no process's map.",
        (
            ("qvmi --qmp /run/vm/qmp.sock maps", "of all processes"),
            ("qvmi --qmp /run/vm/qmp.sock maps 1", "of process 1"),
            (
                "qvmi maps --json | jq '.items[] | select(.permissions[1:3] == \"wx\")'",
                "write and run",
            ),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.views:maps",
        declarations.listing_of_processes,
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
        "qvmi.cli.handlers.views:cmdline",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "env",
        "the environment of a process",
        "Lists the variables that a process was given when its program began.",
        (("qvmi --qmp /run/vm/qmp.sock env 1", "of process 1"),),
        Needs.GUEST,
        "qvmi.cli.handlers.views:env",
        declarations.listing_of_process,
        why_no_dump="",
    ),
    Command(
        "creds",
        "who the guest's processes are, and what they may do",
        "Lists users, groups, capabilities and other rights of processes, as /proc/PID/status does,\n"
        "and with whom they share the kernel's record of them, as after a theft of rights.\n"
        "Four ids are the real, effective, saved and file system one. Of capabilities the effective\n"
        "set is told, and others where they say something else; --json tells all sets by name.",
        (
            ("qvmi --qmp /run/vm/qmp.sock creds", "of all processes"),
            ("qvmi --qmp /run/vm/qmp.sock creds 1", "of process 1"),
            ("qvmi creds --json | jq '.items[] | select(.shared_with != [])'", "stolen rights"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.confinement_views:creds",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "namespaces",
        "the namespaces of the guest's processes",
        "Lists the numbers that /proc/PID/ns shows, the hostname that a process sees, and the pid\n"
        "that it has in its own pid namespace.",
        (
            ("qvmi --qmp /run/vm/qmp.sock namespaces", "of all processes"),
            ("qvmi --qmp /run/vm/qmp.sock namespaces 1", "of process 1"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.confinement_views:namespaces",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "cgroups",
        "the cgroups of the guest's processes, and their containers",
        "Lists the cgroup of each process in each hierarchy, as /proc/PID/cgroup does, and which\n"
        "container its path tells: of docker, podman, containerd, CRI-O, nerdctl, Kubernetes, LXC or\n"
        "systemd-nspawn. Who may make cgroups may name them so.",
        (
            ("qvmi --qmp /run/vm/qmp.sock cgroups", "of all processes"),
            ("qvmi cgroups --json | jq '.items[] | select(.container != \"\")'", "in containers"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.confinement_views:cgroups",
        declarations.listing_of_processes,
        why_no_dump="",
    ),
    Command(
        "stack",
        "the kernel stack of a task",
        "Unwinds it from where the task stands outwards, as /proc/PID/stack does, by the kernel's own\n"
        "ORC tables on x86-64 and by frame pointers on aarch64. HOW says how each frame was found; one\n"
        "that is not reliable may be left over from an earlier call. A task that runs has a stack to\n"
        "look at only while the guest stands still: --exact.",
        (
            ("qvmi --qmp /run/vm/qmp.sock stack 1", "of process 1"),
            ("qvmi --qmp /run/vm/qmp.sock stack 70 --thread 72", "of one of its threads"),
            ("qvmi --qmp /run/vm/qmp.sock stack 70 --exact", "from a vCPU's registers, if it runs"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.stacks:stack",
        declarations.stack,
        why_no_dump="",
    ),
    Command(
        "log",
        "the kernel's log",
        "Lists the records that the kernel still holds, as dmesg in the guest would.",
        (("qvmi --qmp /run/vm/qmp.sock log", "a table"),),
        Needs.GUEST,
        "qvmi.cli.handlers.views:log",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "cached",
        "the files of which the guest holds pages in memory",
        "Lists every file that has pages in the page cache, and how many: files that are in use, that\n"
        "were read or written before, that are in memory alone, and deleted ones that are still held.\n"
        "A file that is seen through an overlay is listed where it lies below.",
        (
            ("qvmi --qmp /run/vm/qmp.sock cached", "all"),
            ("qvmi --qmp /run/vm/qmp.sock cached --under /etc", "in a folder and below"),
            ("qvmi cached --json | jq '.items[] | select(.deleted)'", "deleted, but in memory"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.page_cache:cached",
        declarations.cached,
        why_no_dump="",
    ),
    Command(
        "recover",
        "the content of a file, as far as it is in memory",
        "Writes what the page cache holds of a file, and lists what is missing of it: that is a hole\n"
        "in FILE. Ends with 4 where something is missing.",
        (
            ("qvmi --qmp /run/vm/qmp.sock recover /etc/passwd -o passwd", "a file by its path"),
            ("qvmi --dump guest.core recover 254:1:1312 -o found", "by its device and inode"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.page_cache:recover",
        declarations.recover,
        why_no_dump="",
    ),
)
