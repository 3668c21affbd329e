"""Codepacks in tests: one that is loaded from its folder, and one that looks until it is sure."""

import asyncio
from pathlib import Path

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.inspection import Inspection, inspect_guest
from qvmi.codepacks.packaging.pack_folder import PackFolder
from qvmi.codepacks.packaging.pack_loader import load_bytes
from qvmi.codepacks.resources import Resources
from qvmi.policy import Policy
from qvmi.testing.guest import FakeGuest
from qvmi.testing.machine import FakeMachine

__all__ = ["load_pack", "looks"]


def load_pack(folder: str | Path, **options: object) -> Codepack:
    """This makes the codepack in a folder of your own, as it is run later, but without a signature.

    Args:
        folder: with its ``codepack.toml``; nothing is written into it.
        options: in place of its interval and its baseline.

    Raises:
        CodepackRefused: it cannot be imported, or is another than its manifest says, or is a service.
        BadSettings: its manifest cannot be right.
        UsageError: there is no such folder.
    """
    return load_bytes(PackFolder.read(Path(folder)), **options)


def looks(
    codepack: Codepack,
    guest: FakeGuest,
    *,
    rounds: int | None = None,
    resources: Resources | None = None,
) -> Inspection:
    """This lets a codepack look at a fake guest as ``qvmi pack run`` does at a real one.

    What two looks see is confirmed; what they could not see is told by ``last``.

    Args:
        codepack: which; its interval is waited for.
        guest: at whom.
        rounds: how many looks; None for as many as it takes.
        resources: what it is shown beside memory, if it wants that; None for listings without a row.
    """
    machine = FakeMachine(guest, resources=resources)
    policy = Policy(frozenset(codepack.grants))
    return asyncio.run(inspect_guest(codepack, machine, rounds=rounds, policy=policy))
