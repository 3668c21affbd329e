"""The commands that tell what the kernel has of its own, as data."""

from typing import Final

from qvmi.cli.declared import declarations
from qvmi.cli.declared.command import Command, Needs

__all__ = ["KERNEL_COMMANDS"]

KERNEL_COMMANDS: Final = (
    Command(
        "bpf",
        "the eBPF programs that the kernel has loaded",
        "Lists every program with its machine code and its maps, where links and sockets attach it,\n"
        "and which processes have it, its link or its socket open.",
        (
            ("qvmi --qmp /run/vm/qmp.sock bpf", "a table"),
            ("qvmi bpf --json | jq '.items[] | select(.pids == [])'", "what no process holds"),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.kernel_views:bpf",
        declarations.listing,
        why_no_dump="",
    ),
    Command(
        "percpu",
        "what each CPU has in a variable of its own",
        "Prints each CPU's copy of a per-CPU variable of the kernel: by its type where the kernel\n"
        "tells it, since 5.11 or so; else as bytes.",
        (
            ("qvmi --qmp /run/vm/qmp.sock percpu kstat", "interrupts, by CPU"),
            (
                "qvmi percpu runqueues --cpu 0 --json | jq '.items[0].value.nr_running'",
                "one member",
            ),
        ),
        Needs.GUEST,
        "qvmi.cli.handlers.kernel_views:percpu",
        declarations.percpu,
        why_no_dump="",
    ),
)
