"""Codepacks that run in this process: whether they can, who they are on the bus, and what runs each."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from qvmi.bus.account import Account
from qvmi.bus.topic import is_name
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.fellows import Fellows
from qvmi.codepacks.looker import LOOK_DEADLINE_S, InspectedMachine
from qvmi.codepacks.manifest import Management
from qvmi.codepacks.resource_fetch import require_countable, require_reachable, wants_resources
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.service import ServicePack, is_service
from qvmi.codepacks.service_runner import ServiceRunner
from qvmi.codepacks.standing_alerts import StandingAlerts
from qvmi.codepacks.triggers import Triggers, triggers_of
from qvmi.errors import CodepackError, UsageError
from qvmi.manager.accounts import answering_account, of_packs
from qvmi.policy import Grant, Policies, Policy

__all__ = ["MIN_INTERVAL_S", "WATCH", "AnyRunner", "PacksHere", "require_usable"]

MIN_INTERVAL_S: Final = 0.001
"""Shortest interval of a codepack; below it the machine's other work would starve."""

WATCH: Final = "watch"
"""What the watch itself is called on the bus."""

_STANDING: Final = "standing"

AnyRunner = Runner | ServiceRunner
AnyPack = Codepack | ServicePack


class PacksHere:
    """This makes what runs codepacks in this process.

    Args:
        machine: what they are given.
        vm: its name on the bus.
        policies: what they may do.
        management: what their manifests say, by their names.
        state: the folder in which alerts that stand are kept; None to keep nothing.
        asked: names of those that answer, though they do not name that themselves.
    """

    def __init__(
        self,
        machine: InspectedMachine,
        *,
        vm: str,
        policies: Policies,
        management: Mapping[str, Management],
        state: Path | None,
        asked: Collection[str] = (),
    ) -> None:
        self._asked = asked
        self._machine = machine
        self._vm = vm
        self._policies = policies
        self._management = management
        self._state = state
        self._fellows = Fellows()

    def runners(self, packs: Sequence[AnyPack]) -> dict[Account, AnyRunner]:
        """These are what runs each, by their accounts.

        Raises:
            CodepackError, PolicyDenied, UsageError: one cannot run here, or two have one name.
        """
        _require_distinct(packs)
        for pack in packs:
            require_usable(pack, self._policies.of(pack.name), self._machine)
        asked = {pack.name for pack in packs if self._answers(pack)}
        return {self._account(pack, asked): self._runner(pack) for pack in packs}

    def _triggers(self, pack: Codepack) -> Triggers:
        """This is what it looks for besides its interval."""
        management = self._management.get(pack.name)
        own = triggers_of(pack) if management is None else management.triggers
        return replace(own, answers=own.answers or pack.name in self._asked)

    def _answers(self, pack: AnyPack) -> bool:
        return is_service(pack) or self._triggers(cast("Codepack", pack)).answers

    def _account(self, pack: AnyPack, asked: set[str]) -> Account:
        # Only a service has a bus to ask on.
        asks = asked - {pack.name} if is_service(pack) else ()
        policy = self._policies.of(pack.name)
        account = Account.of_granted(self._vm, pack.name, policy, services=of_packs(asks))
        return answering_account(account, self._vm, pack.name) if pack.name in asked else account

    def _runner(self, pack: AnyPack) -> AnyRunner:
        management = self._management.get(pack.name)
        failures = None if management is None else management.max_failures
        if is_service(pack):
            restart = Management().restart if management is None else management.restart
            return ServiceRunner(
                pack, self._machine, vm=self._vm, restart=restart, max_failures=failures
            )
        kept = None
        if self._state is not None:
            path = self._state / self._vm / _STANDING / f"{pack.name}.json"
            kept = StandingAlerts(path, vm=self._vm, codepack=pack.name)
        return Runner(
            cast("Codepack", pack),
            self._machine,
            vm=self._vm,
            look_deadline_s=LOOK_DEADLINE_S if management is None else management.deadline_s,
            max_failures=failures,
            kept=kept,
            fellows=self._fellows,
            triggers=self._triggers(cast("Codepack", pack)),
            policy=self._policies.of(pack.name),
        )


def _require_distinct(packs: Sequence[AnyPack]) -> None:
    names = [pack.name for pack in packs]
    if not names:
        raise UsageError("no codepacks: there is nothing to watch for")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two codepacks are called {name!r}")
        if name == WATCH:
            raise UsageError(f"the name {name!r} is taken by the watch itself")


def require_usable(pack: AnyPack, policy: Policy, machine: object) -> None:
    """This raises CodepackError or PolicyDenied for a codepack that cannot run in this process."""
    if not is_name(pack.name):
        raise CodepackError(pack.name, "its name is not 1 to 63 of a-z, 0-9 and -")
    interval_s = 1.0 if is_service(pack) else cast("Codepack", pack).interval_s
    if not (math.isfinite(interval_s) and interval_s >= MIN_INTERVAL_S):
        raise CodepackError(pack.name, f"its interval of {interval_s} s is too short")
    for grant in pack.grants:
        policy.require(grant, f"codepack {pack.name}")
    # Nothing can take a page or a second of it back from code in this process.
    policy.require_all(Grant.READ_MEMORY, f"give the guest's memory to codepack {pack.name}")
    looking = cast("Codepack", pack)
    if not is_service(pack) and wants_resources(looking):
        require_countable(looking, policy)
        require_reachable(looking, machine)
