"""A CA of a test's own and what it signs, made by openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Signed", "make_ca", "sign"]


@dataclass(frozen=True)
class Signed:
    """A certificate and its key."""

    certificate: Path
    key: Path


def make_ca(folder: Path, name: str = "ca") -> Signed:
    """Makes a CA that nobody knows."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl("req", "-x509", "-nodes", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}",
             "-keyout", key, "-out", certificate)  # fmt: skip
    return Signed(certificate, key)


def sign(folder: Path, ca: Signed, address: str) -> Signed:
    """Makes a certificate for an IP address."""
    certificate, key = folder / "server.pem", folder / "server.key"
    request, names = folder / "server.csr", folder / "names"
    names.write_text(f"subjectAltName=IP:{address}\n")
    _openssl(
        "req", "-new", "-nodes", *_NEW_KEY, "-subj", "/CN=broker", "-keyout", key, "-out", request
    )
    _openssl("x509", "-req", "-in", request, "-CA", ca.certificate, "-CAkey", ca.key,
             "-CAcreateserial", "-days", "2", "-extfile", names, "-out", certificate)  # fmt: skip
    return Signed(certificate, key)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
