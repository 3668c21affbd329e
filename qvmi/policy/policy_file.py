"""The file ``policy.toml``: which codepack is granted what.

A codepack that has a table is granted what the table says and nothing else; one that has none is
granted what ``[default]`` says; where that is not there either, it may only read.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import UsageError
from qvmi.policy.grant import LIMITS_OF, Grant
from qvmi.policy.limits import MAX_RANGES, UNLIMITED, AddressRange, Limits, Space
from qvmi.policy.policy import READ_ONLY, Policy
from qvmi.settings import Table, nearest, read_settings

__all__ = ["POLICY_FILE_VERSION", "Policies", "parse_policies", "read_policies"]

POLICY_FILE_VERSION: Final = 1

MAX_CODEPACKS: Final = 1024
"""Codepacks of one file; a machine is watched by a handful."""

_GRANTS: Final = tuple(grant.value for grant in Grant)
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}")
_RANGE: Final = re.compile(
    r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})\+(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})([KMGT]?)"
)
_BYTES: Final = re.compile(r"()([0-9]{1,20})([KMGT]?)")
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class _LimitsForm(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """This is a grant's value in the file, where it is a table."""

    physical: list[str] | None = None
    virtual: list[str] | None = None
    per_second: float | None = None
    bytes_per_second: int | str | None = None
    longest_s: float | None = None


@dataclass(frozen=True, slots=True)
class Policies:
    """These are the policies of codepacks.

    Args:
        default: of a codepack that is not named.
        named: of those that are.
    """

    default: Policy = READ_ONLY
    named: Mapping[str, Policy] = field(default_factory=dict)

    def of(self, codepack: str) -> Policy:
        """This is the policy of a codepack."""
        return self.named.get(codepack, self.default)

    def unmatched(self, known: Sequence[str]) -> Mapping[str, str]:
        """These are the names that no known codepack has, each with which one may be meant."""
        return {name: nearest(name, known) for name in self.named if name not in known}


def read_policies(path: Path) -> Policies:
    """This reads a policy file.

    Raises:
        BadSettings: it cannot be read, others may change it, or something in it cannot be right; says
            where, and the way out.
    """
    return parse_policies(path, read_settings(path))


def parse_policies(path: str | os.PathLike[str], data: bytes) -> Policies:
    """This reads the bytes of a policy file; raises as :func:`read_policies`."""
    file = Table.parse(path, data)
    file.require_known("version", "default", "codepacks")
    version = file.values.get("version")
    if type(version) is not int or version != POLICY_FILE_VERSION:
        why = "is missing" if version is None else f"of {version!r} is not known"
        raise file.wrong("version", f"{why}: write version = {POLICY_FILE_VERSION}")
    packs = file.table("codepacks")
    if len(packs.values) > MAX_CODEPACKS:
        raise file.wrong("codepacks", f"has more than {MAX_CODEPACKS} codepacks")
    for name in packs.values:
        if not _NAME.fullmatch(name):
            raise packs.wrong(name, "is no codepack's name: 1 to 63 of a-z, 0-9 and -")
    default = _policy(file.table("default")) if "default" in file.values else READ_ONLY
    return Policies(default, {name: _policy(packs.table(name)) for name in packs.values})


def _policy(table: Table) -> Policy:
    """This reads the grants of one codepack."""
    table.require_known(*_GRANTS)
    limits = {Grant(key): held for key in table.values if (held := _held(table, key)) is not None}
    return Policy(frozenset(limits), limits)


def _held(table: Table, key: str) -> Limits | None:
    """These are the limits within which a grant is held; None where it is not."""
    value = table.values[key]
    if isinstance(value, bool):
        return UNLIMITED if value else None
    if not isinstance(value, dict):
        raise table.wrong(key, f"is {value!r}: write true, false or a table of limits")
    of_grant = table.table(key)
    if not value:
        raise table.wrong(key, "has no limits: write true if none are meant")
    of_grant.require_known(*sorted(LIMITS_OF[Grant(key)]))
    form = of_grant.read_as(_LimitsForm)
    ranges = (
        *_ranges(of_grant, Space.PHYSICAL, form.physical),
        *_ranges(of_grant, Space.VIRTUAL, form.virtual),
    )
    for name, bound in (("per-second", form.per_second), ("longest-s", form.longest_s)):
        _require_positive(of_grant, name, bound)
    volume = _volume(of_grant, form.bytes_per_second)
    if len(ranges) > MAX_RANGES:
        raise table.wrong(key, f"has {len(ranges)} ranges; {MAX_RANGES} are the most")
    return Limits(ranges or None, form.per_second, volume, form.longest_s)


def _require_positive(table: Table, key: str, bound: float | None) -> None:
    try:
        Limits(per_second=bound)
    except UsageError:
        raise table.wrong(key, f"is {bound}: it must be a number above 0") from None


def _volume(table: Table, value: int | str | None) -> float | None:
    if value is None:
        return None
    found = _BYTES.fullmatch(str(value))
    volume = _scaled(found) if found else 0
    if not volume:
        raise table.wrong("bytes-per-second", f'is {value!r}: write a number above 0, or "64M"')
    return float(volume)


def _ranges(table: Table, space: Space, texts: list[str] | None) -> list[AddressRange]:
    if texts == []:
        raise table.wrong(space, "has no range: give one, or leave the key out")
    return [_range(table, space, text) for text in texts or ()]


def _range(table: Table, space: Space, text: str) -> AddressRange:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise table.wrong(space, f'has {text!r}: write "START+SIZE", such as "0x1000+64K"')
    try:
        return AddressRange(space, _number(found[1]), _scaled(found))
    except UsageError as error:
        raise table.wrong(space, f"has {text!r}: {error}") from None


def _scaled(found: re.Match[str]) -> int:
    return _number(found[2]) << _UNITS[found[3]]


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)
