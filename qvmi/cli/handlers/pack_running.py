"""The command that runs one codepack a few times and tells what it found: ``pack run``."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, cast

import msgspec

from qvmi import __version__
from qvmi.cli.declared.values import PackSetting
from qvmi.cli.declared.words import PACKS
from qvmi.cli.dumped import AskedDump
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.keys import key_ring
from qvmi.cli.handlers.left_out import require_fitting, require_possible
from qvmi.cli.handlers.pack_settings import prepared_options, ready
from qvmi.cli.handlers.packs import require_pack
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.watch_report import observed
from qvmi.codepacks.alert import GUARD_RAILS, evidence_hash
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.confirmation import ROUNDS_TO_RAISE, Confirmed
from qvmi.codepacks.inspection import Inspection, inspect_guest
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.manifest import Manifest, built_in_manifest
from qvmi.codepacks.pack_options import PackOptions
from qvmi.codepacks.packaging.pack_loader import load, load_installed
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.codepacks.packaging.third_party import require_signed
from qvmi.codepacks.resources import RESOURCE_GRANTS
from qvmi.errors import CodepackRefused, UsageError
from qvmi.manager.packs_here import require_usable
from qvmi.policy import Policies, read_policies

__all__ = ["run"]

_NOT_IN_A_DUMP: Final = (
    "it is shown more than memory, which is all that a dump has: run it on the machine, by --qmp"
)

_ONE_LOOK: Final = (
    "one look at a dump, in which nothing changes: a second could confirm nothing of what is found"
)


async def run(  # noqa: PLR0913 - one for each argument of the command
    machine: InspectedMachine,
    output: Output,
    *,
    action: str,
    what: str | None,
    key: str | None,
    days: int | None,
    keys: str | None,
    rounds: int | None,
    interval: float | None,
    policy: str | None,
    settings: Sequence[PackSetting],
) -> ExitCode:
    """This runs a codepack here and tells what it found.

    Raises:
        UsageError: there is no such codepack, or that cannot be done.
        CodepackRefused, PolicyDenied, BadSettings: it may not run, or not on this guest.
        MachineGone: the machine ended.
    """
    if what is None:
        raise UsageError(f"pack {action}: give its folder, or the name of one that comes with qvmi")
    if key is not None or days is not None:
        raise UsageError(f"pack {action} takes neither --key nor --days: they are for pack sign")
    policies = Policies() if policy is None else read_policies(Path(policy))
    manifest, verified = _found(what, policies, keys)
    on_dump = isinstance(machine, AskedDump)
    if on_dump and (shown := manifest.grants & RESOURCE_GRANTS):
        raise CodepackRefused(manifest.name, f"{_NOT_IN_A_DUMP} ({', '.join(sorted(shown))})")
    if verified is None:
        ready([what], [what], settings, output)
        await require_possible(machine, what, policies)
    async with prepared_options([manifest], settings) as options:
        codepack = _made(manifest, verified, options[manifest.name], interval)
        require_usable(codepack, policies.of(codepack.name), machine)
        await require_fitting(machine, [manifest])
        inspection = await inspect_guest(
            codepack,
            machine,
            rounds=None if on_dump else rounds,
            least=1 if on_dump else ROUNDS_TO_RAISE,
            deadline_s=manifest.management.deadline_s,
            policy=policies.of(codepack.name),
        )
    if on_dump:
        every = inspection.confirmed + inspection.unconfirmed
        inspection = replace(inspection, confirmed=(), unconfirmed=every)
    _tell(output, codepack.name, inspection, note=_ONE_LOOK if on_dump else "")
    if inspection.found_anything:
        return ExitCode.FOUND
    return ExitCode.FINE if inspection.saw_all else ExitCode.NOT_SEEN


def _found(what: str, policies: Policies, keys: str | None) -> tuple[Manifest, VerifiedPack | None]:
    """This is what comes with qvmi, or is in a folder and verified."""
    if what in PACKS:
        return built_in_manifest(what), None
    require_pack("run", what)
    verified = require_signed(
        Path(what),
        ring=key_ring(keys),
        policies=policies,
        qvmi_version=__version__,
        now=time.time(),
    )
    return verified.folder.manifest, verified


def _made(
    manifest: Manifest, verified: VerifiedPack | None, its: PackOptions, interval_s: float | None
) -> Codepack:
    interval_s = interval_s or manifest.management.interval_s
    if verified is None:
        own = load_installed(manifest.name, manifest.entry, interval_s, **its.values)
        return cast("Codepack", own)  # no service comes with qvmi
    return load(verified, **{**its.values, "interval_s": interval_s})


def _tell(output: Output, codepack: str, inspection: Inspection, *, note: str) -> None:
    last = inspection.last
    if output.json:
        output.document(_document(codepack, inspection, note))
        return
    for one, confirmed in _all(inspection):
        finding = one.finding
        unsure = "" if confirmed else " (not confirmed)"
        output.line(f"{finding.severity} {finding.technique} {codepack}: {finding.claim}{unsure}")
        for observation in finding.evidence:
            output.line(f"    {observed(observation)}")
    looks = "1 look" if inspection.rounds == 1 else f"{inspection.rounds} looks"
    found = len(inspection.confirmed) + len(inspection.unconfirmed)
    problem = f": {last.problem}" if last.problem else ""
    gaps = f", {last.gap_count} gaps" if last.gap_count else ""
    output.message(f"{codepack}: {looks}, {found} found, sight {last.sight}{gaps}{problem}")
    if note:
        output.message(note)


def _document(codepack: str, inspection: Inspection, note: str) -> dict[str, object]:
    last = inspection.last
    return {
        "codepack": codepack,
        "items": [_item(one, confirmed=yes) for one, yes in _all(inspection)],
        "rounds": inspection.rounds,
        "sight": last.sight,
        "problem": last.problem,
        "gaps": last.gaps,
        "gap_count": last.gap_count,
        "provenance": last.provenance,
        "held_by": GUARD_RAILS,
        "note": note,
    }


def _all(inspection: Inspection) -> Iterator[tuple[Confirmed, bool]]:
    yield from ((one, True) for one in inspection.confirmed)
    yield from ((one, False) for one in inspection.unconfirmed)


def _item(one: Confirmed, *, confirmed: bool) -> dict[str, object]:
    """This is a finding as an alert has it, with whether it is confirmed."""
    finding: object = msgspec.to_builtins(one.finding)
    rest = asdict(one) | {"finding": finding}
    return {"confirmed": confirmed, "evidence_hash": evidence_hash(one.finding), **rest}
