"""The signature of a codepack: it covers the name and the bytes of every file, and nothing else is there.

What is signed is a text of lines, kept as it is beside the files, so that nothing has to be brought into
a canonical form to be verified: the bytes are verified first, and read only then.

References: RFC 8032 (Ed25519), FIPS 180-4 (SHA-256).
"""

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.packaging.key_ring import KeyRing, KeyStanding
from qvmi.codepacks.packaging.pack_folder import SIGNATURE_FILE, PackFolder
from qvmi.codepacks.packaging.signing_key import PublicKey, SigningKey
from qvmi.errors import CodepackRefused

__all__ = ["VerifiedPack", "sign", "verify"]

_HEADER: Final = "qvmi codepack signature 1"
"""It stands before all else, so that what was signed for this is never taken for anything else."""
_NEVER: Final = "never"
_SIGNATURE: Final = b"signature "
_KEY: Final = re.compile(rb"\nkey ([0-9a-f]{32})\n")
_FILE: Final = re.compile(r"file ([0-9a-f]{64}) ([A-Za-z0-9._/-]+)")
_FACTS: Final = 5
"""Lines between the header and the files: key, name, version, signed, expires."""
_CLOCK: Final = "%Y-%m-%dT%H:%M:%SZ"
_MOST_NAMED: Final = 3
"""Files that a refusal names."""


@dataclass(frozen=True, slots=True)
class VerifiedPack:
    """This is a codepack that somebody who is trusted has signed, with the very bytes that were verified.

    Args:
        folder: what was read, once, and verified.
        key: whose signature it is.
        signed: when it was signed, by the signer's clock.
        expires: until when the signature holds; ``never`` if for ever.
    """

    folder: PackFolder
    key: PublicKey
    signed: str
    expires: str


def sign(folder: PackFolder, key: SigningKey, *, now: float, valid_s: float | None = None) -> bytes:
    """This is the content of the signature's file.

    Args:
        folder: what is signed.
        key: who signs.
        now: seconds since the Unix epoch.
        valid_s: for how long it holds, in seconds; None for ever.
    """
    expires = _NEVER if valid_s is None else _clock(now + valid_s)
    head = [_HEADER, f"key {key.public.id}", f"name {folder.manifest.name}"]
    head += [f"version {folder.manifest.version}", f"signed {_clock(now)}", f"expires {expires}"]
    lines = [f"file {digest} {path}" for path, digest in sorted(_digests(folder).items())]
    statement = "\n".join((*head, *lines, "")).encode("ascii")
    return statement + _SIGNATURE + base64.b64encode(key.sign(statement)) + b"\n"


def verify(folder: PackFolder, ring: KeyRing, *, now: float) -> VerifiedPack:
    """This checks that somebody who is trusted has signed just these files.

    Args:
        folder: what was read.
        ring: says who is trusted.
        now: seconds since the Unix epoch.

    Raises:
        CodepackRefused: nobody has, or it is too late; says why.
        UsageError: the folder of keys cannot be used.
    """
    name = folder.manifest.name
    if folder.signature is None:
        raise CodepackRefused(name, f"it is not signed (no {SIGNATURE_FILE}): qvmi pack sign")
    statement, signature = _parted(name, folder.signature)
    key = _trusted(name, statement, ring)
    if not key.verifies(signature, statement):
        raise CodepackRefused(
            name,
            f"its signature is not by key {key.id} ({key.name}), or {SIGNATURE_FILE} was altered",
        )
    said = statement.decode("ascii", "replace").splitlines()
    facts = dict(line.split(" ", 1) for line in said[1 : 1 + _FACTS] if " " in line)
    _require_same(name, facts, folder)
    _require_files(name, said[1 + _FACTS :], folder)
    expires = facts.get("expires", "")
    if expires != _NEVER and not _clock(now) < expires:
        raise CodepackRefused(name, f"its signature has expired ({expires}): sign it anew")
    return VerifiedPack(folder, key, facts.get("signed", ""), expires)


def _parted(name: str, data: bytes) -> tuple[bytes, bytes]:
    """These are the signed bytes, and the signature."""
    statement, found, line = data.rpartition(b"\n" + _SIGNATURE)
    if not found or not statement.startswith(_HEADER.encode() + b"\n"):
        raise CodepackRefused(name, f"{SIGNATURE_FILE} is no signature")
    try:
        signature = base64.b64decode(line.removesuffix(b"\n"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodepackRefused(name, f"{SIGNATURE_FILE} is no signature: {error}") from error
    return statement + b"\n", signature


def _trusted(name: str, statement: bytes, ring: KeyRing) -> PublicKey:
    """This is the key that is to have signed."""
    found = _KEY.match(statement, len(_HEADER))
    if found is None:
        raise CodepackRefused(name, f"{SIGNATURE_FILE} names no key")
    key_id = found[1].decode("ascii")
    if revoked := ring.keys(KeyStanding.REVOKED).get(key_id):
        raise CodepackRefused(
            name, f"it is signed by key {key_id} ({revoked.name}), which was revoked"
        )
    key = ring.keys(KeyStanding.TRUSTED).get(key_id)
    if key is None:
        raise CodepackRefused(
            name, f"it is signed by key {key_id}, which is not trusted: qvmi keys trust FILE"
        )
    return key


def _require_same(name: str, facts: Mapping[str, str], folder: PackFolder) -> None:
    """This raises unless the signature was made for a codepack of this name and version."""
    ours = {"name": folder.manifest.name, "version": folder.manifest.version}
    for fact, value in ours.items():
        if facts.get(fact) != value:
            raise CodepackRefused(
                name, f"its signature is of a codepack with {fact} {facts.get(fact)}, not {value}"
            )


def _require_files(name: str, lines: list[str], folder: PackFolder) -> None:
    """This raises unless the files are those that were signed, all of them and no others."""
    matches = [_FILE.fullmatch(line) for line in lines]
    signed = {found[2]: found[1] for found in matches if found}
    if len(signed) != len(lines):
        raise CodepackRefused(name, f"{SIGNATURE_FILE} is no list of files")
    there = _digests(folder)
    changes = {
        "altered": [path for path in there if signed.get(path, there[path]) != there[path]],
        "added": [path for path in there if path not in signed],
        "removed": [path for path in signed if path not in there],
    }
    told = [_told(how, sorted(paths)) for how, paths in changes.items() if paths]
    if told:
        raise CodepackRefused(name, f"it is not as it was signed: {'; '.join(told)}")


def _told(how: str, paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return f"{', '.join(paths[:_MOST_NAMED])}{more} {how}"


def _digests(folder: PackFolder) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in folder.files.items()}


def _clock(at: float) -> str:
    return time.strftime(_CLOCK, time.gmtime(at))
