"""The command about codepacks: ``pack``."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from qvmi.cli.declared.values import PackSetting
from qvmi.cli.declared.words import PACKS
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.keys import key_ring
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.codepacks.manifest import ENFORCEMENT, Manifest, built_in_manifest
from qvmi.codepacks.packaging.pack_folder import SIGNATURE_FILE, PackFolder
from qvmi.codepacks.packaging.pack_signature import sign, verify
from qvmi.errors import BadSettings, CodepackRefused, UsageError
from qvmi.settings import nearest

__all__ = ["pack", "require_pack"]

_DAY_S: Final = 86400.0
_MAX_DAYS: Final = 36500
"""A hundred years."""
_MODE: Final = 0o644


def pack(  # noqa: PLR0913 - one for each argument of the command
    output: Output,
    *,
    action: str,
    what: str | None,
    key: str | None,
    days: int | None,
    keys: str | None,
    rounds: int | None,
    interval: float | None,
    policy: str | None,
    settings: Sequence[PackSetting],
) -> ExitCode:
    """This lists codepacks, tells of one, signs one or verifies one.

    Raises:
        UsageError: that cannot be done, or it is no codepack.
    """
    if action != "sign" and (key is not None or days is not None):
        raise UsageError(f"pack {action} takes neither --key nor --days: they are for pack sign")
    if (rounds, interval, policy) != (None, None, None) or settings:
        raise UsageError(
            f"pack {action} takes no --rounds, --interval, --policy or --set: they are for run"
        )
    if action == "list":
        return _list(output, what)
    if what is None:
        or_name = f", or a name: {', '.join(PACKS)}" if action == "info" else ""
        raise UsageError(f"pack {action}: give its folder{or_name}")
    if action == "info":
        return _info(output, what)
    if action == "verify":
        return _verify(output, Path(what), keys)
    if key is None:
        raise UsageError("pack sign: by which key? --key NAME; qvmi keys new NAME makes one")
    return _sign(output, Path(what), key, days, keys)


def _list(output: Output, what: str | None) -> ExitCode:
    if what is not None:
        raise UsageError(f"pack list takes nothing: {what!r}")
    manifests = [built_in_manifest(name) for name in PACKS]
    if output.json:
        output.document({"items": [_document(manifest) for manifest in manifests]})
    else:
        columns: list[Column[Manifest]] = [
            Column("NAME", lambda one: one.name),
            Column("VERSION", lambda one: one.version),
            Column("GRANTS", lambda one: ",".join(sorted(one.grants))),
            Column("SUMMARY", lambda one: one.summary),
        ]
        output.table(table_of(columns, manifests))
    return ExitCode.FINE


def _info(output: Output, what: str) -> ExitCode:
    built_in = what in PACKS
    require_pack("info", what)
    manifest = built_in_manifest(what) if built_in else _folder(Path(what)).manifest
    document = _document(manifest)
    if output.json:
        output.document(document)
        return ExitCode.FINE
    columns: list[Column[tuple[str, str]]] = [
        Column("", lambda row: row[0]),
        Column("", lambda row: row[1]),
    ]
    output.table(table_of(columns, list(_flat(document))))
    if not built_in:
        output.message(
            "that is what it says of itself: qvmi pack verify tells whether to believe it"
        )
    return ExitCode.FINE


def require_pack(action: str, what: str) -> None:
    """This raises UsageError for what is neither a codepack of qvmi's nor anything on the disk."""
    if what not in PACKS and not os.path.lexists(what):
        near = nearest(what, PACKS)
        raise UsageError(f"pack {action} {what}: neither a folder nor a codepack of qvmi's{near}")


def _verify(output: Output, path: Path, keys: str | None) -> ExitCode:
    ring = key_ring(keys)
    try:
        verified = verify(PackFolder.read(path), ring, now=time.time())
    except (CodepackRefused, BadSettings) as error:
        if output.json:
            output.document({"verified": False, "problem": error.problem})
        else:
            output.message(str(error))
        return ExitCode.FOUND
    manifest, key = verified.folder.manifest, verified.key
    if output.json:
        output.document(
            {
                "verified": True,
                "name": manifest.name,
                "version": manifest.version,
                "key": key.id,
                "key_name": key.name,
                "signed": verified.signed,
                "expires": verified.expires,
                "files": len(verified.folder.files),
            }
        )
    else:
        output.line(
            f"{manifest.name} {manifest.version} is as {key.name} (key {key.id}) has signed it"
            f" at {verified.signed}; that expires: {verified.expires}"
        )
    return ExitCode.FINE


def _sign(output: Output, path: Path, key: str, days: int | None, keys: str | None) -> ExitCode:
    if days is not None and not 1 <= days <= _MAX_DAYS:
        raise UsageError(f"--days {days}: from 1 to {_MAX_DAYS}")
    folder = _folder(path, to_sign=True)
    signer = key_ring(keys).signing_key(key)
    valid_s = None if days is None else days * _DAY_S
    _replace(path / SIGNATURE_FILE, sign(folder, signer, now=time.time(), valid_s=valid_s))
    manifest = folder.manifest
    if output.json:
        output.document(
            {
                "name": manifest.name,
                "version": manifest.version,
                "key": signer.public.id,
                "files": len(folder.files),
            }
        )
    else:
        output.line(
            f"{manifest.name} {manifest.version}: {len(folder.files)} files, signed by {key}"
            f" (key {signer.public.id})"
        )
    return ExitCode.FINE


def _folder(path: Path, *, to_sign: bool = False) -> PackFolder:
    """This reads a codepack that was named; what is wrong with it is for whoever has named it to mend."""
    try:
        return PackFolder.read(path, to_sign=to_sign)
    except CodepackRefused as error:
        raise UsageError(str(error)) from error


def _replace(path: Path, data: bytes) -> None:
    """This writes the signature beside its place and moves it there, whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(new, flags, _MODE), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(data)
        new.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    finally:
        new.unlink(missing_ok=True)


def _document(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "summary": manifest.summary,
        "entry": manifest.entry,
        "grants": sorted(manifest.grants),
        "requires": msgspec.to_builtins(manifest.requires),
        "management": msgspec.to_builtins(manifest.management),
        "baseline": manifest.baseline,
        "enforced": ENFORCEMENT,
    }


def _flat(values: Mapping[str, object], above: str = "") -> list[tuple[str, str]]:
    """These are the values as lines: each with its path."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((name, shown or "-"))
    return rows
