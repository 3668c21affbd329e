"""Watching with codepacks in processes of their own: what the command makes of the manager."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from qvmi.bus.message import Message
from qvmi.cli.printing.output import Output
from qvmi.codepacks.manifest import Manifest
from qvmi.codepacks.pack_options import PackOptions
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.manager.companion import Companion
from qvmi.manager.manager import manage
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.proven_isolation import examined
from qvmi.policy import Policies

__all__ = ["managed"]


@asynccontextmanager
async def managed(  # noqa: PLR0913 - one for each argument of the command
    machine: object,
    output: Output,
    own: Sequence[Manifest],
    others: Sequence[VerifiedPack],
    *,
    interval_s: float | None,
    options: Mapping[str, PackOptions],
    policies: Policies,
    state: str | None,
    allow_unproven: bool,
    companions: Sequence[Companion] = (),
    asked: Collection[str] = (),
) -> AsyncIterator[AsyncIterator[Message]]:
    """This has the manager run codepacks as processes for as long as the block lasts.

    Raises:
        UsageError: what is watched is no live machine.
        QvmiError: what `qvmi.manager.manager.manage` raises.
    """
    if not isinstance(machine, Machine):
        raise UsageError("codepacks in processes of their own watch a live machine")
    packs = [
        *((one, interval_s, None) for one in own),
        *((one.folder.manifest, None, one) for one in others),
    ]
    specs = [
        PackSpec.of_manifest(
            manifest,
            policies.of(manifest.name),
            interval_s=every_s,
            code=code,
            answers=manifest.name in asked,
            options=options[manifest.name],
        )
        for manifest, every_s, code in packs
    ]
    async with manage(
        machine,
        specs,
        state=None if state is None else Path(state),
        isolation=examined(machine),
        allow_unproven=allow_unproven,
        companions=companions,
    ) as manager:
        output.message(manager.fleet.jail.in_words)
        for caveat in manager.fleet.caveats:
            output.message(f"each alert says: {caveat}")
        yield manager
