"""Which codepacks a machine is not for: what they want cannot be shown, or another guest runs."""

from collections.abc import Collection, Sequence
from typing import Final

from qvmi.cli.printing.output import Output
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.manifest import Manifest, built_in_manifest
from qvmi.codepacks.resource_fetch import ResourceMachine
from qvmi.codepacks.resources import RESOURCE_GRANTS
from qvmi.errors import CodepackRefused, PolicyDenied, QueryTimeout, StaleView, UnknownGuest
from qvmi.manager.pack_spec import NOT_IN_A_PROCESS
from qvmi.manager.records import note
from qvmi.policy import Policies, refuse

__all__ = ["possible", "require_fitting", "require_possible"]

_FACTS_TIMEOUT_S: Final = 30.0
"""Longest wait for what system runs; it is known already, and only the time is read."""


async def possible(
    machine: object,
    output: Output,
    own: Sequence[str],
    *,
    named: Collection[str],
    policies: Policies,
    in_process: bool,
) -> tuple[str, ...]:
    """These are the codepacks that can run; of the others it is told why they are left out.

    Args:
        machine: what they are to look at.
        output: is told.
        own: names of codepacks that come with qvmi.
        named: of these whoever was asked for by name, and is not to be left out.
        policies: what they may do.
        in_process: whether each has a process of its own.

    Raises:
        PolicyDenied, CodepackRefused: one that was named cannot run.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    kept: list[str] = []
    for name in own:
        try:
            await _require(machine, name, policies, in_process=in_process)
        except (PolicyDenied, CodepackRefused) as error:
            if name in named:
                _raise(error)
            words = f"left out: {error}"
            output.message(words)
            note("%s", words)
        else:
            kept.append(name)
    return tuple(kept)


async def require_possible(machine: object, name: str, policies: Policies) -> None:
    """This raises PolicyDenied or CodepackRefused where a codepack of qvmi's own cannot run here."""
    try:
        await _require(machine, name, policies, in_process=False)
    except (PolicyDenied, CodepackRefused) as error:
        _raise(error)


async def require_fitting(machine: InspectedMachine, manifests: Sequence[Manifest]) -> None:
    """This raises CodepackRefused where a codepack is not made for the guest, as far as that is known."""
    try:
        facts = await machine.query(lambda guest: guest.facts(), timeout_s=_FACTS_TIMEOUT_S)
    except (UnknownGuest, StaleView, QueryTimeout):
        return  # whatever runs there, the codepack will say that it cannot see it
    for manifest in manifests:
        manifest.require_guest(facts.os, facts.architecture)


def _raise(error: PolicyDenied | CodepackRefused) -> None:
    """This raises it; the audit log tells of what the policy refuses."""
    if isinstance(error, PolicyDenied):
        refuse(error)
    raise error


async def _require(machine: object, name: str, policies: Policies, *, in_process: bool) -> None:
    shown = sorted(built_in_manifest(name).grants & RESOURCE_GRANTS)
    if shown and in_process:
        raise CodepackRefused(name, NOT_IN_A_PROCESS)
    for grant in shown:
        if not policies.of(name).allows(grant):
            way_out = f"--policy FILE gives it, by `{grant} = true` in [codepacks.{name}]"
            raise PolicyDenied(f"codepack {name}", grant, reason=way_out)
        if isinstance(machine, ResourceMachine) and (reason := await machine.lacks(grant)):
            raise CodepackRefused(name, reason)
