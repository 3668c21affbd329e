"""What mosquitto's configuration file says of who may enter and what they may do there.

References: mosquitto.conf(5), ``acl_file``; mosquitto 2.0 ``src/conf.c`` (a broker without any listener of
its own takes connections of this host alone, anonymous ones too).
"""

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Final

from qvmi.bus.topic import TOPIC_ROOT
from qvmi.manager.isolation.facts import BrokerConfig, Opening, Unseen
from qvmi.manager.isolation.permissions import opening

__all__ = ["config_path", "read_config"]

_MAX_CONFIG: Final = 1 << 20  # bytes; one that qvmi writes has 600
_BEYOND: Final = frozenset({
    *("plugin", "auth_plugin", "global_plugin", "include_dir", "connection", "bridge_cafile"),
    *("use_identity_as_username", "use_subject_as_username", "psk_file", "per_listener_settings"),
})  # fmt: skip
_ACCESS: Final = frozenset({"read", "write", "readwrite", "deny"})
_WRITES: Final = frozenset({"write", "readwrite"})
_ANY_ALERT: Final = (*TOPIC_ROOT.split("/"), "\0", "\0", "alert")
"""An alert's topic, of a machine and a codepack that nobody can have named."""
_LISTENERS: Final = frozenset({"listener", "port", "bind_address"})
_FILES: Final = ("password_file", "acl_file", "keyfile")


def config_path(arguments: Sequence[str]) -> str | None:
    """This is the configuration file that a mosquitto's command line names."""
    for option, value in pairwise(arguments):
        if option in {"-c", "--config-file"}:
            return value
    return None


def read_config(pid: int, arguments: Sequence[str]) -> BrokerConfig | Unseen:
    """This reads the file, as it is now: the broker read it when it began."""
    name = config_path(arguments[1:])
    if name is None:
        return BrokerConfig("", anonymous=True, has_access_list=False, beyond=(), files=())
    folder = Path(f"/proc/{pid}/cwd")
    try:
        here = folder.readlink()
        path = here / name
        settings = list(_settings(_text(path)))
    except OSError as error:
        return Unseen(
            f"{name}: {error.strerror or error}; run qvmi as the broker's user, or as root"
        )
    values = dict(settings)
    keys = set(values)
    anonymous = values.get("allow_anonymous", "false" if keys & _LISTENERS else "true")
    named = [here / values[key] for key in _FILES if key in values]
    return BrokerConfig(
        str(path),
        anonymous=any(v == "true" for k, v in settings if k == "allow_anonymous")
        or anonymous == "true",
        has_access_list="acl_file" in keys,
        beyond=tuple(sorted(keys & _BEYOND)),
        files=tuple(_openings([path, *named])),
        sweeping=_sweeping(here / values["acl_file"]) if "acl_file" in values else (),
    )


def _sweeping(path: Path) -> tuple[str, ...] | Unseen:
    """These are the lines of an access list by which somebody may publish in the name of whomever."""
    try:
        lines = [line.split(maxsplit=2) for line in _text(path).splitlines()]
    except OSError as error:
        return Unseen(
            f"{path}: {error.strerror or error}; run qvmi as the broker's user, or as root"
        )
    found: list[str] = []
    user = ""
    for first, *rest in filter(None, lines):
        if first == "user" and rest:
            user = " ".join(rest)
        elif first in {"topic", "pattern"} and rest:
            named = len(rest) > 1 and rest[0] in _ACCESS
            access, topic = rest if named else ("readwrite", rest[-1])
            if access in _WRITES and _is_anybodys(topic):
                found.append(f"user {user}: {topic}" if first == "topic" else f"pattern {topic}")
    return tuple(found)


def _is_anybodys(topic: str) -> bool:
    """This tells whether a filter has the alert of whatever machine and codepack in it."""
    for level, name in zip_longest(topic.strip().split("/"), _ANY_ALERT):
        if level == "#":
            return True
        if level is None or name is None or level not in {"+", name}:
            return False
    return True


def _openings(paths: Sequence[Path]) -> Iterator[Opening]:
    for path in paths:
        found = opening(path)
        if found is not None:
            yield found


def _text(path: Path) -> str:
    """This reads a regular file, as far as it may be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "no regular file")
        text = file.read(_MAX_CONFIG + 1)
    if len(text) > _MAX_CONFIG:
        raise OSError(0, f"more than {_MAX_CONFIG} bytes")
    return text.decode(errors="backslashreplace")


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        if words and not words[0].startswith("#"):
            yield words[0], words[1].strip() if len(words) > 1 else ""
