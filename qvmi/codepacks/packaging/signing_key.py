"""Ed25519 keys: who signs codepacks, and whose signatures are believed.

References: RFC 8032 (Ed25519), RFC 5958 (PKCS #8), RFC 7468 (its textual form).
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from qvmi.errors import UsageError

__all__ = ["MAX_KEY_BYTES", "PublicKey", "SigningKey", "is_key_name"]

MAX_KEY_BYTES: Final = 4096
"""Bytes of a key's file; they have some 120."""

_KIND: Final = "qvmi-ed25519"
_RAW_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_ID_DIGITS: Final = 32
"""Hexadecimal digits of a key's id: 128 bits of its hash, which nobody meets by trying."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def is_key_name(text: str) -> bool:
    """This tells whether a key may be called so."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class PublicKey:
    """This is a key that checks signatures.

    Args:
        name: what its owner calls it; it proves nothing.
        raw: its 32 bytes.

    Raises:
        UsageError: it is no key, or has no name.
    """

    name: str
    raw: bytes

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise UsageError(f"key name {self.name!r}: use 1 to 63 of a-z, 0-9 and -")
        if len(self.raw) != _RAW_BYTES:
            raise UsageError(f"key {self.name!r} has {len(self.raw)} bytes, not {_RAW_BYTES}")

    @classmethod
    def parse(cls, text: str, *, where: object) -> Self:
        """This reads a key's one line, ``qvmi-ed25519 BASE64 NAME``.

        Raises:
            UsageError: it is none; says where.
        """
        words = text.split()
        if len(words) != 3 or words[0] != _KIND:  # noqa: PLR2004 - kind, bytes, name
            raise UsageError(
                f"{where} is no public key of qvmi's, one line of {_KIND} BASE64 NAME: give the .pub"
                " file that qvmi keys new has made"
            )
        try:
            raw = base64.b64decode(words[1], validate=True)
        except (binascii.Error, ValueError) as error:
            raise UsageError(f"{where} is no public key of qvmi's: {error}") from error
        return cls(words[2], raw)

    @property
    def id(self) -> str:
        """This is what signatures name it by: a hash of its bytes."""
        return hashlib.sha256(self.raw).hexdigest()[:_ID_DIGITS]

    @property
    def text(self) -> str:
        """This is its one line."""
        return f"{_KIND} {base64.b64encode(self.raw).decode('ascii')} {self.name}\n"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """This tells whether the message was signed by this key's owner."""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """This is a key that signs.

    Args:
        name: what its owner calls it.
    """

    name: str
    _private: Ed25519PrivateKey

    @classmethod
    def new(cls, name: str) -> Self:
        """This makes a key out of random bytes."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, name: str, pem: bytes, *, where: object) -> Self:
        """This reads a key's file.

        Raises:
            UsageError: it holds no Ed25519 key without a password.
        """
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{where} is no private key without a password: {error}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise UsageError(f"{where} is no Ed25519 key")
        return cls(name, private)

    @property
    def pem(self) -> bytes:
        """This is the private key as its file holds it."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public(self) -> PublicKey:
        """This is the key that checks what this one signs."""
        return PublicKey(self.name, self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """This signs a message."""
        return self._private.sign(message)
