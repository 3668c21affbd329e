"""What the manager must know of a codepack to run it in a process of its own."""

import math
from dataclasses import dataclass
from typing import Final, Self

from qvmi.bus.topic import is_name
from qvmi.codepacks.looker import LOOK_DEADLINE_S
from qvmi.codepacks.manifest import Kind, Manifest, Restart
from qvmi.codepacks.pack_options import NO_OPTIONS, PackOptions
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.codepacks.resources import RESOURCE_GRANTS
from qvmi.codepacks.triggers import NO_TRIGGERS, Triggers
from qvmi.errors import CodepackError, CodepackRefused
from qvmi.manager.accounts import ALERTS, MANAGER
from qvmi.manager.packs_here import MIN_INTERVAL_S, WATCH
from qvmi.manager.response.records import HOLDER
from qvmi.policy import READ_ONLY, Policy

__all__ = ["MAX_RESTARTS", "NOT_IN_A_PROCESS", "PackSpec"]

NOT_IN_A_PROCESS: Final = (
    "a codepack in a process of its own is shown memory alone: leave out --placement process"
)

MAX_RESTARTS: Final = 5
"""Ends in a row after which something is wrong that another start does not mend."""

_TAKEN: Final = frozenset({MANAGER, ALERTS, WATCH, HOLDER})


@dataclass(frozen=True, slots=True)
class PackSpec:
    """This is a codepack, and how it is run.

    Args:
        name: on the bus.
        entry: what makes it, as ``module:name``; called with the interval.
        interval_s: from the start of one look to the start of the next.
        policy: what it may do.
        restart: when its process is started again that has ended.
        max_restarts: how often in a row.
        look_s: longest look; its process ends soon after, if that is not over then.
        memory_bytes: how much memory of its own it may take; None for any.
        triggers: what it looks for besides its interval.
        is_service: whether it lives, instead of being asked to look.
        code: the verified bytes that its entry is in; None where it is installed beside qvmi.
        answers: whether it answers what it is asked over the bus, though it does not name that itself.
        options: what its entry is called with besides the interval; its descriptors stay open meanwhile.

    Raises:
        CodepackError: a value cannot be used.
    """

    name: str
    entry: str
    interval_s: float = 1.0
    policy: Policy = READ_ONLY
    restart: Restart = Restart.ON_FAILURE
    max_restarts: int = MAX_RESTARTS
    look_s: float = LOOK_DEADLINE_S
    memory_bytes: int | None = None
    triggers: Triggers = NO_TRIGGERS
    is_service: bool = False
    code: VerifiedPack | None = None
    answers: bool = False
    options: PackOptions = NO_OPTIONS

    @classmethod
    def of_manifest(
        cls,
        manifest: Manifest,
        policy: Policy,
        *,
        interval_s: float | None = None,
        code: VerifiedPack | None = None,
        answers: bool = False,
        options: PackOptions | None = None,
    ) -> Self:
        """This is a codepack that is run as its manifest says.

        Raises:
            PolicyDenied: it needs a grant that the policy does not give it.
            CodepackRefused: it is shown more than memory, which a process of its own is not.
            CodepackError: a value cannot be used.
        """
        manifest.require_granted(policy)
        if shown := manifest.grants & RESOURCE_GRANTS:
            raise CodepackRefused(manifest.name, f"{NOT_IN_A_PROCESS} ({', '.join(sorted(shown))})")
        management = manifest.management
        return cls(
            manifest.name,
            manifest.entry,
            management.interval_s if interval_s is None else interval_s,
            policy,
            restart=management.restart,
            max_restarts=management.max_restarts,
            look_s=management.deadline_s,
            memory_bytes=management.memory_bytes,
            triggers=management.triggers,
            is_service=manifest.kind is Kind.SERVICE,
            code=code,
            answers=answers,
            options=PackOptions(manifest.baseline) if options is None else options,
        )

    @property
    def is_asked(self) -> bool:
        """This tells whether others may ask it."""
        return self.answers or self.is_service or self.triggers.answers

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise CodepackError(self.name, "its name is not 1 to 63 of a-z, 0-9 and -")
        if self.name in _TAKEN:
            raise CodepackError(self.name, "that name is taken by the manager itself")
        if not (math.isfinite(self.interval_s) and self.interval_s >= MIN_INTERVAL_S):
            raise CodepackError(self.name, f"its interval of {self.interval_s} s is too short")
        module, colon, name = self.entry.partition(":")
        if not (module and colon and name):
            raise CodepackError(self.name, f"its entry {self.entry!r} is not module:name")
