"""A codepack of somebody else's: read, verified, held against the policy, and only then imported."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.key_ring import KeyRing
from qvmi.codepacks.manifest import Manifest
from qvmi.codepacks.pack_folder import PackFolder
from qvmi.codepacks.pack_loader import load
from qvmi.codepacks.pack_signature import verify
from qvmi.errors import CodepackRefused
from qvmi.policy import Policies

__all__ = ["ThirdParty", "load_signed"]

_audit: Final = logging.getLogger("qvmi.audit")


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """This is a codepack of somebody else's that may run.

    Args:
        manifest: what it says of itself.
        codepack: made of the bytes that were verified.
    """

    manifest: Manifest
    codepack: Codepack


def load_signed(
    path: Path, *, ring: KeyRing, policies: Policies, qvmi_version: str, now: float
) -> ThirdParty:
    """This loads the codepack in a folder; the audit log tells of it, and of each that is refused.

    Args:
        path: of the folder.
        ring: says whose signatures are believed.
        policies: what codepacks are granted.
        qvmi_version: of this qvmi.
        now: seconds since the Unix epoch.

    Raises:
        CodepackRefused: it is unsigned, altered, of another version, or not what it says it is.
        PolicyDenied: it needs a grant that the policy does not give it.
        BadSettings: its manifest cannot be right.
        UsageError: the keys cannot be used.
    """
    try:
        verified = verify(PackFolder.read(path), ring, now=now)
        manifest = verified.folder.manifest
        manifest.require_qvmi(qvmi_version)
        manifest.require_granted(policies.of(manifest.name))
        key = verified.key
        _audit.info(
            "codepack %s %s, signed by key %s (%s) at %s, is loaded",
            *(manifest.name, manifest.version, key.id, key.name, verified.signed),
        )
        return ThirdParty(manifest, load(verified))
    except CodepackRefused as error:
        _audit.warning("refused: %s", error)
        raise
