"""The words that commands take for an answer."""

from typing import Final

__all__ = [
    "ALL_PACKS",
    "EVENT_KINDS",
    "GATEWAY_HOLDER",
    "HERE",
    "PACKS",
    "PLACEMENTS",
    "PROCESS",
    "SHELLS",
]

PACKS: Final = ("hidden-processes",)
"""The names of the codepacks that ``watch`` can run."""

ALL_PACKS: Final = "all"

GATEWAY_HOLDER: Final = "gateway"
"""What a policy file calls the clients of a gateway."""

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
