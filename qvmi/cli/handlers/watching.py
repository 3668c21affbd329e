"""The command that runs codepacks and prints alerts as they come: ``watch``."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi import __version__
from qvmi.bus.broker import find_mosquitto, mosquitto
from qvmi.bus.bus import OpenChannel
from qvmi.bus.message import Message
from qvmi.bus.mqtt import broker_at
from qvmi.cli.declared.values import PackSetting
from qvmi.cli.declared.words import (
    GATEWAY_HOLDER,
    HERE,
    PACK_GROUPS,
    PACKS,
    PROCESS,
    RESPONSE_HOLDER,
    USUAL_PACKS,
)
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.keys import key_ring
from qvmi.cli.handlers.left_out import possible, require_fitting
from qvmi.cli.handlers.pack_settings import prepared_options, ready
from qvmi.cli.handlers.responding import Response, Wishes, responding
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.watch_report import WatchReport
from qvmi.cli.stop_signal import stop_signal, until_stopped
from qvmi.codepacks.alert_file import AlertFile
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.manifest import Manifest, built_in_manifest
from qvmi.codepacks.pack_options import PackOptions
from qvmi.codepacks.packaging.key_ring import KeyRing
from qvmi.codepacks.packaging.pack_loader import load_any, load_installed
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.codepacks.packaging.third_party import require_signed
from qvmi.codepacks.service import ServicePack
from qvmi.errors import BrokerUnavailable, QvmiError, UsageError
from qvmi.manager.records import note
from qvmi.manager.watch import WatchedMachine
from qvmi.manager.watch import watch as watch_machine
from qvmi.policy import Policies, read_policies
from qvmi.settings import nearest

__all__ = ["watch"]

_NOT_ALL: Final = (
    f"of qvmi's own codepacks that is {' '.join(PACK_GROUPS[USUAL_PACKS])} alone:"
    f" `watch all` runs all {len(PACKS)}, but those that lack rules or that policy or machine do not let"
)
_NOT_HELD: Final = (
    "policy: guard rails for {}: it runs in this process, where nothing keeps its code from anything"
    " (--placement process does)"
)


async def watch(  # noqa: PLR0913 - one for each argument of the command
    machine: WatchedMachine,
    output: Output,
    *,
    packs: str | Sequence[str],
    interval: float | None,
    duration_s: float | None,
    load: Sequence[str] = (),
    only: Sequence[str] = (),
    policy: str | None = None,
    keys: str | None = None,
    bus: str | None = None,
    placement: str = HERE,
    state: str | None = None,
    allow_unproven_isolation: bool = False,
    log: str | None = None,
    playbook: str | None = None,
    respond: bool = False,
    settings: Sequence[PackSetting] = (),
) -> ExitCode:
    """This watches until Ctrl-C, until the time is up, or until the machine is gone.

    Raises:
        BusError, CodepackError: nothing can be watched.
        PolicyDenied, UsageError: a codepack may not run, or the policy or the keys cannot be used.
        MachineGone: the machine ended, and there had been no alert.
    """
    placed = _Placement(
        process=placement == PROCESS,
        state=state,
        allow_unproven=allow_unproven_isolation,
        bus=mosquitto if bus is None else broker_at(bus),
    )
    placed.require_fitting()
    policies = Policies() if policy is None else read_policies(Path(policy))
    others = _verified(load, policies, key_ring(keys))
    _warn_of_unmatched(output, policy, policies, others)
    names, others = _asked_for(packs, only, others)
    named = (*only, *_words(packs))
    names = ready(names, named, settings, output)
    names = await possible(
        machine, output, names, named=named, policies=policies, in_process=placed.process
    )
    chosen = _Chosen(tuple(map(built_in_manifest, names)), others, policies, interval, settings)
    report = WatchReport(output, chosen.names)
    wishes = Wishes(playbook, respond, state)
    try:
        with _opened_log(log) as report.file, stop_signal() as stop:
            await require_fitting(machine, chosen.manifests)
            async with _running(machine, output, chosen, placed, wishes, report) as messages:
                output.message(
                    f"watching {machine.address}: {', '.join(chosen.names)}; Ctrl-C ends it"
                )
                if packs == USUAL_PACKS and not only:
                    output.message(_NOT_ALL)
                await until_stopped(_follow(messages, report), stop, duration_s)
    except QvmiError as error:
        if not report.found_anything:
            raise
        output.message(str(error))
    return report.exit_code


@dataclass(frozen=True, slots=True)
class _Placement:
    """This is where codepacks run, and what goes with it."""

    process: bool
    state: str | None
    allow_unproven: bool
    bus: OpenChannel

    def require_fitting(self) -> None:
        if not self.process and self.allow_unproven:
            raise UsageError("--allow-unproven-isolation goes with --placement process")
        if self.process and self.bus is not mosquitto:
            raise UsageError(
                "--bus goes without --placement process: the manager's broker is its own, since it"
                " must be able to put codepacks out"
            )
        if self.bus is mosquitto:
            try:
                find_mosquitto()
            except BrokerUnavailable as error:
                other = "" if self.process else ", or name a broker that runs with --bus"
                raise UsageError(f"{error}{other}") from error


@dataclass(frozen=True, slots=True)
class _Chosen:
    """These are the codepacks that are to run, and what they may do.

    Args:
        own: manifests of those that come with qvmi.
        others: what was loaded.
        policies: what they may do.
        interval_s: how often those of qvmi's own look; None for what their manifests say.
        settings: options that were typed for them.
    """

    own: Sequence[Manifest]
    others: Sequence[VerifiedPack]
    policies: Policies
    interval_s: float | None
    settings: Sequence[PackSetting]

    @property
    def manifests(self) -> list[Manifest]:
        """These are those of all."""
        return [*self.own, *(other.folder.manifest for other in self.others)]

    @property
    def names(self) -> list[str]:
        """These are the names of all."""
        return [manifest.name for manifest in self.manifests]


@asynccontextmanager
async def _running(
    machine: WatchedMachine,
    output: Output,
    chosen: _Chosen,
    placed: _Placement,
    wishes: Wishes,
    report: WatchReport,
) -> AsyncIterator[AsyncIterator[Message]]:
    """This runs codepacks, and acts on their alerts as was wished, for as long as the block lasts."""
    policies, names = chosen.policies, chosen.names
    async with (
        prepared_options(chosen.manifests, chosen.settings) as options,
        responding(machine, output, report.add, wishes, policies=policies, packs=names) as response,
        _opened(machine, output, chosen, options, placed, response) as messages,
    ):
        yield response.heard(messages)


def _opened(
    machine: WatchedMachine,
    output: Output,
    chosen: _Chosen,
    options: Mapping[str, PackOptions],
    placed: _Placement,
    response: Response,
) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
    """This runs codepacks where they are to run, for as long as a block lasts."""
    if placed.process:
        from qvmi.cli.handlers.managing import managed

        return managed(
            machine,
            output,
            chosen.own,
            chosen.others,
            interval_s=chosen.interval_s,
            options=options,
            policies=chosen.policies,
            state=placed.state,
            allow_unproven=placed.allow_unproven,
            companions=response.companions,
            asked=response.asked,
        )
    for other in chosen.others:
        output.message(_NOT_HELD.format(other.folder.manifest.name))
    return watch_machine(
        machine,
        packs=_made(chosen, options),
        policy=chosen.policies,
        bus=placed.bus,
        management={one.name: one.management for one in chosen.manifests},
        state=None if placed.state is None else Path(placed.state),
        companions=response.companions,
        asked=response.asked,
    )


def _warn_of_unmatched(
    output: Output, path: str | None, policies: Policies, others: Sequence[VerifiedPack]
) -> None:
    """This tells of tables that are of nobody here: the name is misspelt, or is loaded another time."""
    known = (*PACKS, *(one.folder.manifest.name for one in others), GATEWAY_HOLDER, RESPONSE_HOLDER)
    for name, meant in policies.unmatched(known).items():
        words = f"{path}: [codepacks.{name}] is of no codepack that is here{meant}"
        output.message(words)
        note("%s", words)


def _made(chosen: _Chosen, options: Mapping[str, PackOptions]) -> list[Codepack | ServicePack]:
    """These are the codepacks themselves: no code of any other is imported."""
    own = [
        load_installed(
            one.name,
            one.entry,
            chosen.interval_s or one.management.interval_s,
            **options[one.name].values,
        )
        for one in chosen.own
    ]
    loaded = [
        load_any(other.folder, **options[other.folder.manifest.name].values)
        for other in chosen.others
    ]
    return [*own, *loaded]


def _asked_for(
    packs: str | Sequence[str], only: Sequence[str], others: list[VerifiedPack]
) -> tuple[tuple[str, ...], list[VerifiedPack]]:
    """These are the codepacks that were asked for: names of qvmi's own, each once, and others.

    Raises:
        UsageError: there is none of that name.
    """
    own = tuple(
        dict.fromkeys(name for word in _words(packs) for name in PACK_GROUPS.get(word, (word,)))
    )
    if not only:
        return own, others
    if packs == USUAL_PACKS:  # nobody has said among which
        own = PACKS
    there = (*own, *(one.folder.manifest.name for one in others))
    for name in only:
        if name not in there:
            raise UsageError(f"--only {name}: there is no such codepack{nearest(name, there)}")
    return (
        tuple(name for name in own if name in only),
        [one for one in others if one.folder.manifest.name in only],
    )


def _words(packs: str | Sequence[str]) -> Sequence[str]:
    return [packs] if isinstance(packs, str) else packs


def _opened_log(path: str | None) -> AbstractContextManager[AlertFile | None]:
    """This is the file that messages are appended to, if one was named."""
    return nullcontext() if path is None else AlertFile(Path(path))


def _verified(folders: Sequence[str], policies: Policies, ring: KeyRing) -> list[VerifiedPack]:
    """These are the codepacks in the folders, each verified; no line of them has run."""
    now = time.time()
    return [
        require_signed(
            Path(folder), ring=ring, policies=policies, qvmi_version=__version__, now=now
        )
        for folder in folders
    ]


async def _follow(messages: AsyncIterator[Message], report: WatchReport) -> None:
    """This reports messages until the machine is gone, which it raises."""
    async for message in messages:
        report.add(message)
