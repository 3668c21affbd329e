"""The commands that tell what the kernel has of its own, as data."""

from typing import Final

from qvmi.cli import declarations
from qvmi.cli.command import Command, Needs

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
        "qvmi.cli.kernel_views:bpf",
        declarations.listing,
        why_no_dump="",
    ),
)
