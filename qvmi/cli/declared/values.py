"""The values that arguments may have, each checked before anything is attached to."""

import math
import os
import re
from argparse import ArgumentTypeError
from typing import Final, NamedTuple

__all__ = [
    "FileName",
    "PackSetting",
    "Place",
    "RawRam",
    "Space",
    "count",
    "file_name",
    "folder_name",
    "given",
    "interval",
    "names",
    "new_file",
    "pack_setting",
    "place",
    "raw_ram",
    "seconds",
    "sha256",
    "size",
    "user_space",
]

_MAX_ADDRESS: Final = (1 << 64) - 1
_MAX_SECONDS: Final = 366 * 86_400.0
"""A year; nothing that is waited for takes longer."""
_MIN_INTERVAL: Final = 0.001
"""What codepacks and manager take at least; to import it from there would cost each command its time."""
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30}

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_BARE_ADDRESS: Final = re.compile(r"[0-9a-f]{16}")
"""As /proc/kallsyms and the kernel's own messages print addresses."""
_SIZE: Final = re.compile(rf"({_NUMBER.pattern})([KMG]?)")
_INODE: Final = re.compile(r"(?:([0-9]+:[0-9]+):)?([0-9]+)")
_SETTING: Final = re.compile(r"([a-z0-9-]{1,63})\.([A-Za-z_][A-Za-z0-9_]{0,63})=(.+)", re.DOTALL)
_SYMBOL: Final = re.compile(rf"([^\s+]+)(?:\+({_NUMBER.pattern}))?")


class PackSetting(NamedTuple):
    """This is an option of a codepack as it was typed."""

    pack: str
    option: str
    value: str


class Place(NamedTuple):
    """This is a place in memory as it was asked for.

    Args:
        symbol: to begin at; empty for an address.
        offset: bytes behind the symbol, or the address.
    """

    symbol: str
    offset: int

    def __str__(self) -> str:
        if not self.symbol:
            return f"{self.offset:#x}"
        return f"{self.symbol}+{self.offset:#x}" if self.offset else self.symbol


class Space(NamedTuple):
    """This is an address space as it was asked for.

    Args:
        kind: ``kernel``, ``physical`` or ``user``.
        pid: of the process whose space it is, None for the others.
    """

    kind: str
    pid: int | None = None


class FileName(NamedTuple):
    """This is a file of the guest as it was asked for.

    Args:
        path: where it lies; empty where its inode is meant.
        device: of the file system, as ``MAJOR:MINOR``; empty for any.
        inode: its number there.
    """

    path: str
    device: str = ""
    inode: int = 0

    def __str__(self) -> str:
        return self.path or f"{self.device}{':' * bool(self.device)}{self.inode}"


class RawRam(NamedTuple):
    """This is raw RAM as it was described.

    Args:
        below_4g: bytes of it that lie below 4 GiB, None to find out.
    """

    below_4g: int | None


def raw_ram(text: str) -> RawRam:
    """This reads how much of raw RAM lies below 4 GiB, or that nobody knows."""
    return RawRam(None if text == "auto" else size(text))


def user_space(text: str) -> Space:
    """This reads the pid of the process whose address space is meant."""
    return Space("user", count(text))


def place(text: str) -> Place:
    """This reads an address, a symbol, or a symbol with an offset."""
    if _BARE_ADDRESS.fullmatch(text):
        return Place("", int(text, 16))
    if _NUMBER.fullmatch(text):
        return Place("", _bounded(int(text, 0), text))
    match = _SYMBOL.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no address, no SYMBOL and no SYMBOL+OFFSET")
    return Place(match[1], _bounded(int(match[2] or "0", 0), text))


def size(text: str) -> int:
    """This reads a number of bytes, such as ``4096``, ``0x1000`` or ``4K``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no size such as 64, 0x40 or 4K")
    number = _bounded(int(match[1], 0) << _UNITS[match[2]], text)
    if number == 0:
        raise ArgumentTypeError("0 bytes are nothing to read")
    return number


def file_name(text: str) -> FileName:
    """This reads a path, an inode's number, or ``MAJOR:MINOR:INODE``."""
    if text.startswith("/"):
        return FileName(text)
    match = _INODE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no path that begins with /, and no inode's number")
    return FileName("", match[1] or "", _bounded(int(match[2]), text))


def folder_name(text: str) -> str:
    """This reads the path of a folder of the guest."""
    if not text.startswith("/"):
        raise ArgumentTypeError(f"{text!r} is no path that begins with /")
    return text


def count(text: str) -> int:
    """This reads a number that counts or names something, such as a pid."""
    if not _NUMBER.fullmatch(text):
        raise ArgumentTypeError(f"{text!r} is no number from 0 on")
    return _bounded(int(text, 0), text)


def seconds(text: str) -> float:
    """This reads a time that can be waited for."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    if number > _MAX_SECONDS:
        raise ArgumentTypeError(f"{text!r} is too long: give {_MAX_SECONDS:.0f} seconds at most")
    return number


def interval(text: str) -> float:
    """This reads how often a codepack is to look."""
    number = seconds(text)
    if number < _MIN_INTERVAL:
        raise ArgumentTypeError(f"{text!r} is too short: give {_MIN_INTERVAL:g} seconds or more")
    return number


def given(text: str) -> str:
    """This reads an address or a file's name, which cannot be empty.

    An empty one is a variable that was never set; to take it for nothing would take another machine.
    """
    if not text:
        raise ArgumentTypeError("'' names nothing; leave the option out, or say what is meant")
    return text


def names(text: str) -> tuple[str, ...]:
    """This reads names with commas between them."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in found:
        raise ArgumentTypeError(f"{text!r}: give names with commas between them")
    return found


def pack_setting(text: str) -> PackSetting:
    """This reads an option of a codepack."""
    found = _SETTING.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r}: give PACK.OPTION=VALUE")
    return PackSetting(*found.groups())


def sha256(text: str) -> str:
    """This reads a hash, as 64 hexadecimal digits."""
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):  # noqa: PLR2004 - of SHA-256
        raise ArgumentTypeError(f"{text!r} is no hash; expected 64 hexadecimal digits")
    return text.lower()


def new_file(text: str) -> str:
    """This reads the name of a file that is to be written, and tries whether it can be.

    What cannot be known before, such as that the disk will be full, is told when it is written.
    """
    from pathlib import Path
    from tempfile import TemporaryFile

    try:
        target = Path(given(text)).resolve()
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if target.is_file() or not target.exists():
            TemporaryFile(dir=target.parent).close()  # beside the one that it may replace
        elif not os.access(target, os.W_OK):  # a pipe would be ended by trying
            raise PermissionError(0, "it may not be written to")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a link leads to itself
        why = getattr(error, "strerror", None) or error
        raise ArgumentTypeError(f"cannot write {text!r}: {why}; choose another path") from error
    return text


def _bounded(number: int, text: str) -> int:
    if number > _MAX_ADDRESS:
        raise ArgumentTypeError(f"{text} does not fit into 64 bits")
    return number
