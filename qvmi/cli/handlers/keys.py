"""The command about the keys of codepacks: ``keys``."""

from pathlib import Path
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.codepacks.packaging.key_ring import KeyRing, KeyStanding, default_key_folder
from qvmi.codepacks.packaging.signing_key import PublicKey
from qvmi.errors import UsageError

__all__ = ["key_ring", "keys"]

_WANTED: Final = {"new": "its name", "trust": "its .pub file", "revoke": "its name or id"}


def key_ring(folder: str | None, *, may_be_new: bool = False) -> KeyRing:
    """This is the folder of keys that was named, or this user's.

    Raises:
        UsageError: there is none such; this user's own need not be there yet.
    """
    if folder is not None and not may_be_new and not Path(folder).is_dir():
        raise UsageError(f"--keys {folder!r}: there is no such folder")
    return KeyRing(default_key_folder() if folder is None else Path(folder))


def keys(output: Output, *, action: str, what: str | None, keys: str | None) -> ExitCode:
    """This makes, lists, trusts or revokes keys.

    Raises:
        UsageError: that cannot be done.
    """
    ring = key_ring(keys, may_be_new=action != "list" or what is not None)
    if action == "list":
        if what is not None:
            raise UsageError(f"keys list takes nothing: {what!r}")
        _list(output, ring)
        return ExitCode.FINE
    if what is None:
        raise UsageError(f"keys {action}: give {_WANTED[action]}")
    if action == "new":
        key, standing = ring.new(what), KeyStanding.OWN
        output.message(f"give {ring.folder / 'own' / what}.pub to who is to trust it")
    elif action == "trust":
        key, standing = ring.trust(Path(what)), KeyStanding.TRUSTED
    else:
        key, standing = ring.revoke(what), KeyStanding.REVOKED
    if output.json:
        output.document(_document(key, standing))
    else:
        output.line(f"{key.id} {key.name} {standing}")
    return ExitCode.FINE


def _list(output: Output, ring: KeyRing) -> None:
    rows = [(key, standing) for standing in KeyStanding for key in ring.keys(standing).values()]
    if output.json:
        output.document({"items": [_document(key, standing) for key, standing in rows]})
        return
    columns: list[Column[tuple[PublicKey, KeyStanding]]] = [
        Column("ID", lambda row: row[0].id),
        Column("NAME", lambda row: row[0].name),
        Column("STANDING", lambda row: row[1]),
    ]
    output.table(table_of(columns, rows))


def _document(key: PublicKey, standing: KeyStanding) -> dict[str, str]:
    return {"id": key.id, "name": key.name, "standing": standing}
