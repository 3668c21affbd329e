"""The command that runs codepacks and prints alerts as they come: ``watch``."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from qvmi import __version__
from qvmi.bus.broker import find_mosquitto, mosquitto
from qvmi.bus.bus import OpenChannel
from qvmi.bus.message import Message
from qvmi.bus.mqtt import broker_at
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.keys import key_ring
from qvmi.cli.left_out import possible
from qvmi.cli.output import Output
from qvmi.cli.responding import Response, Wishes, responding
from qvmi.cli.stop_signal import stop_signal
from qvmi.cli.watch_report import WatchReport
from qvmi.cli.words import (
    GATEWAY_HOLDER,
    HERE,
    PACK_GROUPS,
    PACKS,
    PROCESS,
    RESPONSE_HOLDER,
    USUAL_PACKS,
)
from qvmi.codepacks.alert_file import AlertFile
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.container_escape import ContainerEscape
from qvmi.codepacks.credentials import CredentialWatch
from qvmi.codepacks.disk_differences import DiskDifferences
from qvmi.codepacks.flows_without_owner import FlowsWithoutOwner
from qvmi.codepacks.hidden_modules import HiddenModules
from qvmi.codepacks.hidden_processes import HiddenProcesses
from qvmi.codepacks.hidden_sockets import HiddenSockets
from qvmi.codepacks.impostors import Impostors
from qvmi.codepacks.injection import Injection
from qvmi.codepacks.interrupt_table import InterruptTable
from qvmi.codepacks.kernel_hooks import KernelHooks
from qvmi.codepacks.kernel_settings import KernelSettings
from qvmi.codepacks.kernel_text import KernelText
from qvmi.codepacks.key_ring import KeyRing
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.manifest import Manifest, built_in_manifest
from qvmi.codepacks.pack_loader import load_any
from qvmi.codepacks.pack_signature import VerifiedPack
from qvmi.codepacks.persistence import Persistence
from qvmi.codepacks.system_calls import SystemCalls
from qvmi.codepacks.third_party import require_signed
from qvmi.codepacks.unusual_code import UnusualCode
from qvmi.errors import (
    BrokerUnavailable,
    QueryTimeout,
    QvmiError,
    StaleView,
    UnknownGuest,
    UsageError,
)
from qvmi.manager.records import note
from qvmi.manager.watch import WatchedMachine
from qvmi.manager.watch import watch as watch_machine
from qvmi.policy import Policies, read_policies
from qvmi.settings import nearest

__all__ = ["PACK_MAKERS", "require_fitting", "watch"]

PACK_MAKERS: Final[Mapping[str, Callable[[float], Codepack]]] = {
    "hidden-processes": HiddenProcesses,
    "system-calls": SystemCalls,
    "kernel-text": KernelText,
    "hidden-modules": HiddenModules,
    "interrupt-table": InterruptTable,
    "kernel-hooks": KernelHooks,
    "kernel-settings": KernelSettings,
    "unusual-code": UnusualCode,
    "credentials": CredentialWatch,
    "injection": Injection,
    "impostors": Impostors,
    "hidden-sockets": HiddenSockets,
    "persistence": Persistence,
    "container-escape": ContainerEscape,
    "disk-differences": DiskDifferences,
    "flows-without-owner": FlowsWithoutOwner,
}
_FACTS_TIMEOUT_S: Final = 30.0
"""Longest wait for what system runs; it is known already, and only the time is read."""
_NOT_ALL: Final = (
    f"of qvmi's own codepacks that is {' '.join(PACK_GROUPS[USUAL_PACKS])} alone:"
    f" `watch all` runs all {len(PACKS)}, but those that the policy or the machine does not let"
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
    if policy is not None:
        _warn_of_unmatched(output, policy, policies, others)
    own = _named(packs)
    if only:
        own, others = _chosen(only, PACKS if packs == USUAL_PACKS else own, others)
    own = await possible(
        machine,
        output,
        own,
        named=(*only, *_words(packs)),
        policies=policies,
        in_process=placed.process,
    )
    chosen = _Chosen.of(own, others, policies, interval)
    report = WatchReport(output, chosen.names)
    try:
        with _opened_log(log) as file, stop_signal() as stop:
            report.file = file
            await require_fitting(machine, chosen.manifests)
            wishes = Wishes(playbook, respond, state)
            async with _responded(machine, output, chosen, placed, report, wishes) as messages:
                _tell_beginning(
                    output, machine.address, chosen, usual=packs == USUAL_PACKS and not only
                )
                await _follow(messages, report, stop, duration_s)
    except QvmiError as error:
        if not report.found_anything:
            raise
        output.message(str(error))
    return report.exit_code


def _tell_beginning(output: Output, address: str, chosen: "_Chosen", *, usual: bool) -> None:
    """This tells what watches, and that there is more where nobody has said what should."""
    output.message(f"watching {address}: {', '.join(chosen.names)}; Ctrl-C ends it")
    if usual:
        output.message(_NOT_ALL)


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
    """These are the codepacks that are to run, and what they may do."""

    own: Sequence[str]
    others: Sequence[VerifiedPack]
    manifests: Sequence[Manifest]
    policies: Policies
    interval_s: float | None

    @classmethod
    def of(
        cls,
        own: Sequence[str],
        others: Sequence[VerifiedPack],
        policies: Policies,
        interval_s: float | None,
    ) -> Self:
        """This is qvmi's own by their names, and others."""
        manifests = [*map(built_in_manifest, own), *(other.folder.manifest for other in others)]
        return cls(own, others, manifests, policies, interval_s)

    @property
    def names(self) -> list[str]:
        """These are the names of all."""
        return [manifest.name for manifest in self.manifests]


@asynccontextmanager
async def _responded(
    machine: WatchedMachine,
    output: Output,
    chosen: _Chosen,
    placed: _Placement,
    report: WatchReport,
    wishes: Wishes,
) -> AsyncIterator[AsyncIterator[Message]]:
    """This runs codepacks, and acts on their alerts as was wished, for as long as the block lasts."""
    async with (
        responding(
            machine, output, report.add, wishes, policies=chosen.policies, packs=chosen.names
        ) as response,
        _opened(machine, output, chosen, placed, response) as messages,
    ):
        yield response.heard(messages)


def _opened(
    machine: WatchedMachine,
    output: Output,
    chosen: _Chosen,
    placed: _Placement,
    response: Response,
) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
    """This runs codepacks where they are to run, for as long as a block lasts."""
    if placed.process:
        from qvmi.cli.managing import managed

        return managed(
            machine,
            output,
            chosen.manifests[: len(chosen.own)],
            chosen.others,
            interval_s=chosen.interval_s,
            policies=chosen.policies,
            state=placed.state,
            allow_unproven=placed.allow_unproven,
            companions=response.companions,
            asked=response.asked,
        )
    for other in chosen.others:
        output.message(_NOT_HELD.format(other.folder.manifest.name))
    running = [
        PACK_MAKERS[one.name](chosen.interval_s or one.management.interval_s)
        for one in chosen.manifests[: len(chosen.own)]
    ]
    return watch_machine(
        machine,
        packs=[*running, *(load_any(other.folder) for other in chosen.others)],
        policy=chosen.policies,
        bus=placed.bus,
        management={one.name: one.management for one in chosen.manifests},
        state=None if placed.state is None else Path(placed.state),
        companions=response.companions,
        asked=response.asked,
    )


def _warn_of_unmatched(
    output: Output, path: str, policies: Policies, others: Sequence[VerifiedPack]
) -> None:
    """This tells of tables that are of nobody here: the name is misspelt, or is loaded another time."""
    known = (*PACKS, *(one.folder.manifest.name for one in others), GATEWAY_HOLDER, RESPONSE_HOLDER)
    for name, meant in policies.unmatched(known).items():
        words = f"{path}: [codepacks.{name}] is of no codepack that is here{meant}"
        output.message(words)
        note("%s", words)


def _chosen(
    only: Sequence[str], own: Sequence[str], others: Sequence[VerifiedPack]
) -> tuple[tuple[str, ...], list[VerifiedPack]]:
    """These are the codepacks that were asked for, of qvmi's own and of others.

    Raises:
        UsageError: there is none of that name.
    """
    there = (*own, *(one.folder.manifest.name for one in others))
    for name in only:
        if name not in there:
            raise UsageError(f"--only {name}: there is no such codepack{nearest(name, there)}")
    return (
        tuple(name for name in own if name in only),
        [one for one in others if one.folder.manifest.name in only],
    )


def _named(packs: str | Sequence[str]) -> tuple[str, ...]:
    """These are the codepacks that words stand for, each once."""
    words = _words(packs)
    return tuple(dict.fromkeys(name for word in words for name in PACK_GROUPS.get(word, (word,))))


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


async def require_fitting(machine: InspectedMachine, manifests: Sequence[Manifest]) -> None:
    """This raises CodepackRefused where a codepack is not made for the guest, as far as that is known."""
    try:
        facts = await machine.query(lambda guest: guest.facts(), timeout_s=_FACTS_TIMEOUT_S)
    except (UnknownGuest, StaleView, QueryTimeout):
        return  # whatever runs there, the codepack will say that it cannot see it
    for manifest in manifests:
        manifest.require_guest(facts.os, facts.architecture)


async def _follow(
    messages: AsyncIterator[Message],
    report: WatchReport,
    stop: asyncio.Event,
    limit_s: float | None,
) -> None:
    """This reports messages until the machine is gone, the signal comes, or the time is up."""

    async def read() -> None:
        async for message in messages:
            report.add(message)

    reading = asyncio.create_task(read(), name="qvmi-report")
    stopping = asyncio.create_task(stop.wait(), name="qvmi-stop")
    try:
        await asyncio.wait(
            {reading, stopping}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        if reading.done():
            reading.result()
    finally:
        reading.cancel()
        stopping.cancel()
        await asyncio.wait({reading, stopping})
