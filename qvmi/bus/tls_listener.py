"""Where a broker of our own listens for other machines, and how it proves that it is the one they want."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError

__all__ = ["TlsListener"]

_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class TlsListener:
    """This is a listener that speaks TLS only; accounts and their rights are those of the Unix socket.

    Args:
        host: the one IP address to listen on; never all of them, which would be those of every guest's
            network too.
        port: the TCP port.
        certificate: a file with the broker's certificate, and those between it and the CA, in PEM.
        key: a file with its key in PEM, without a passphrase.

    Raises:
        UsageError: the address is none or stands for all, or certificate and key cannot be used.
    """

    host: str
    port: int
    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        try:
            wildcard = ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            raise UsageError(f"TLS listener on {self.host!r}: name one IP address") from None
        if wildcard or not 0 < self.port <= _MAX_PORT:
            raise UsageError(
                f"TLS listener on {self.host} port {self.port}: name one address and port, so that "
                "nothing listens where nobody looks"
            )
        try:
            # An empty passphrase fails, where none given would ask for one at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=""
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise UsageError(f"{self.certificate} and {self.key}: {reason}") from error

    def pem(self) -> tuple[str, str]:
        """This is the text of certificate and key.

        Raises:
            UsageError: they cannot be read any more.
        """
        try:
            return self.certificate.read_text("ascii"), self.key.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.certificate} and {self.key}: {error}") from error
