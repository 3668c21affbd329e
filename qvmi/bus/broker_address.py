"""Where a broker is, by URL, and how to be let in there.

References: RFC 3986; the schemes mqtt and mqtts as mosquitto_sub(1) has them, with ports 1883 and 8883.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from qvmi.bus.unix_socket import MAX_SOCKET_PATH
from qvmi.errors import UsageError
from qvmi.settings import is_named_pipe

__all__ = ["BrokerAddress", "Login"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_OPTIONS: Final = frozenset({"ca", "secret-file"})
_MAX_SECRET_BYTES: Final = 65535
"""What an MQTT password can have."""


@dataclass(frozen=True, slots=True)
class Login:
    """This is how a broker that somebody else runs knows us.

    Args:
        user: the user name.
        secret: the password.
    """

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """This is where a broker listens; neither its text nor its repr holds a secret.

    Args:
        scheme: ``unix``, ``mqtt`` or ``mqtts``.
        host: the Unix socket's path, or a host.
        port: 0 for a Unix socket.
        ca: a file of certificates to trust instead of the system's; for ``mqtts`` only.
        login: what to say there; None says the name and secret of each account.
    """

    scheme: str
    host: str
    port: int = 0
    ca: Path | None = None
    login: Login | None = None

    def __str__(self) -> str:
        if self.scheme == "unix":
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def of_socket(cls, path: Path) -> Self:
        """This is the address of a broker on a Unix socket."""
        return cls("unix", str(path))

    @classmethod
    def parse(cls, url: str) -> Self:
        """This reads an address such as ``mqtts://USER@HOST:PORT?secret-file=FILE&ca=FILE``.

        Also ``mqtt://USER:SECRET@HOST``, and ``unix:///PATH``. What other programs may see, such as
        a command line, should name a file for the secret.

        Raises:
            UsageError: it is none, or its files cannot be read. No secret is in the message.
        """
        if not url.isprintable():  # `urlsplit` leaves out some of them: it would be another host
            raise UsageError(
                "the broker's URL has a character that is not printable, such as a newline"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
            (parts.hostname or "").encode("idna")  # as is done with a name that is looked up
        except ValueError:
            raise UsageError("the broker's URL is none: its host or port cannot be read") from None
        if port == 0:
            raise UsageError(
                "the broker's URL has port 0, at which nothing listens: name another one"
            )
        options = _options(parts)
        login = _login(parts, options.get("secret-file"))
        if parts.scheme == "unix":
            return cls._unix(parts, options, login)
        if parts.scheme not in _PORTS:
            raise UsageError("the broker's URL must begin with mqtt://, mqtts:// or unix://")
        if not parts.hostname or parts.path.strip("/"):
            raise UsageError(
                f"the broker's URL must be {parts.scheme}://HOST[:PORT], without a path"
            )
        ca = options.get("ca")
        if ca and parts.scheme != "mqtts":
            raise UsageError("ca= has a meaning with mqtts:// only: mqtt:// is not encrypted")
        address = cls(
            parts.scheme,
            parts.hostname,
            _PORTS[parts.scheme] if port is None else port,
            Path(ca) if ca else None,
            login,
        )
        address.tls()  # a file that is no certificate is told of now
        return address

    @classmethod
    def _unix(cls, parts: SplitResult, options: dict[str, str], login: Login | None) -> Self:
        path = unquote(parts.path)
        absolute = path.startswith("/") and not parts.hostname and "\0" not in path
        if not absolute or len(path.encode()) > MAX_SOCKET_PATH or "ca" in options:
            raise UsageError(
                f"the broker's URL must be unix:///PATH, {MAX_SOCKET_PATH} bytes at most"
            )
        return cls("unix", path, login=login)

    def tls(self) -> ssl.SSLContext | None:
        """This is how to check whom one speaks with, and to encrypt it; None for other schemes.

        Raises:
            UsageError: the file of certificates cannot be used.
        """
        if self.scheme != "mqtts":
            return None
        try:
            if self.ca and is_named_pipe(self.ca):
                raise UsageError(f"{self.ca}: no certificates are read from a pipe: name a file")
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as error:  # a NUL in its name
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"{self.ca}: no certificates: {why}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _options(parts: SplitResult) -> dict[str, str]:
    given = parse_qs(parts.query, keep_blank_values=True)
    unknown = given.keys() - _OPTIONS
    if unknown or any(len(values) > 1 for values in given.values()) or parts.fragment:
        raise UsageError(
            "the broker's URL may have ca=FILE and secret-file=FILE behind ?, each once"
        )
    return {name: values[0] for name, values in given.items()}


def _login(parts: SplitResult, secret_file: str | None) -> Login | None:
    """This is the user and secret of a URL."""
    if not parts.username:
        if parts.password or secret_file:
            raise UsageError("the broker's URL has a secret, but no user")
        return None
    if parts.password and secret_file:
        raise UsageError("the broker's URL has a secret and a file with one")
    secret = unquote(parts.password or "")
    if secret_file:
        secret = _secret_in(Path(secret_file))
    return Login(unquote(parts.username), secret)


def _secret_in(path: Path) -> str:
    """This is the first line of a file."""
    try:
        if is_named_pipe(path):
            raise UsageError(f"{path}: no secret is read from a pipe: name a file")
        with path.open("rb") as file:
            line = file.readline(_MAX_SECRET_BYTES)
        return line.decode().rstrip("\r\n")
    except (OSError, ValueError) as error:  # a NUL in its name, or what it holds is no UTF-8
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: no secret can be read there: {why}") from error
