"""A codepack of somebody else's: verified and held against the policy, before it is imported anywhere."""

import logging
from pathlib import Path
from typing import Final

from qvmi.codepacks.packaging.key_ring import KeyRing
from qvmi.codepacks.packaging.pack_folder import PackFolder
from qvmi.codepacks.packaging.pack_signature import VerifiedPack, verify
from qvmi.errors import CodepackRefused
from qvmi.policy import Policies

__all__ = ["require_signed"]

_audit: Final = logging.getLogger("qvmi.audit")


def require_signed(
    path: Path, *, ring: KeyRing, policies: Policies, qvmi_version: str, now: float
) -> VerifiedPack:
    """This verifies the codepack in a folder; the audit log tells of it, and of each that is refused.

    Args:
        path: of the folder.
        ring: says whose signatures are believed.
        policies: what codepacks are granted.
        qvmi_version: of this qvmi.
        now: seconds since the Unix epoch.

    Raises:
        CodepackRefused: it is unsigned, altered, or of another version.
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
            "codepack %s %s, signed by key %s (%s) at %s, may run",
            *(manifest.name, manifest.version, key.id, key.name, verified.signed),
        )
    except CodepackRefused as error:
        _audit.warning("refused: %s", error)
        raise
    return verified
