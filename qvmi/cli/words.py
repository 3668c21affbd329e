"""The words that commands take for an answer."""

from typing import Final

__all__ = [
    "ALL_PACKS",
    "GATEWAY_HOLDER",
    "HERE",
    "PACKS",
    "PLACEMENTS",
    "PROCESS",
    "SHELLS",
    "USUAL",
    "USUAL_PACKS",
]

PACKS: Final = (
    "hidden-processes",
    "unusual-code",
    "credentials",
    "injection",
    "impostors",
    "hidden-sockets",
    "persistence",
    "container-escape",
)
"""The names of the codepacks that ``watch`` can run."""

USUAL: Final = "usual"
USUAL_PACKS: Final = ("hidden-processes", "credentials")
"""What ``watch`` runs unless told otherwise: those that a guest in good health gives no reason to speak."""

ALL_PACKS: Final = "all"

GATEWAY_HOLDER: Final = "gateway"
"""What a policy file calls the clients of a gateway."""

HERE: Final = "here"
PROCESS: Final = "process"
PLACEMENTS: Final = (HERE, PROCESS)
"""Where ``watch`` can run codepacks."""

SHELLS: Final = ("bash", "zsh", "fish")
"""The shells that ``completion`` makes scripts for."""
