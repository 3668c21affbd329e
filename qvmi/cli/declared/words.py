"""The words that commands take for an answer."""

from typing import Final

__all__ = [
    "ALL_PACKS",
    "EVENT_KINDS",
    "GATEWAY_HOLDER",
    "HERE",
    "PACKS",
    "PACK_GROUPS",
    "PLACEMENTS",
    "PROCESS",
    "RESPONSE_HOLDER",
    "SHELLS",
    "USUAL_PACKS",
]

PACKS: Final = (
    "hidden-processes",
    *("system-calls", "kernel-text", "hidden-modules", "interrupt-table"),
    *("kernel-hooks", "kernel-settings"),
    *("unusual-code", "credentials", "injection", "impostors", "hidden-sockets"),
    *("persistence", "container-escape"),
    *("disk-differences", "flows-without-owner", "known-malware"),
)
"""The names of the codepacks that ``watch`` can run."""

ALL_PACKS: Final = "all"
USUAL_PACKS: Final = "usual"
PACK_GROUPS: Final = {ALL_PACKS: PACKS, USUAL_PACKS: ("hidden-processes",)}
"""What stands for several of them; without a word ``watch`` runs the usual one: the one that sees a guest
through any memory, and that a guest in good health gives no reason to speak."""

GATEWAY_HOLDER: Final = "gateway"
"""What a policy file calls the clients of a gateway."""

RESPONSE_HOLDER: Final = "response"
"""What a policy file calls whoever acts on alerts."""

HERE: Final = "here"
PROCESS: Final = "process"
PLACEMENTS: Final = (HERE, PROCESS)
"""Where ``watch`` can run codepacks."""

SHELLS: Final = ("bash", "zsh", "fish")
"""The shells that ``completion`` makes scripts for."""

EVENT_KINDS: Final = (
    *("started", "execed", "exited", "loaded", "unloaded", "listening", "mounted", "unmounted"),
)
"""What ``events`` can wait for."""
