"""The profile of one kernel build: what was learned of it, kept between runs.

A profile is a memo. It holds the answers that were asked for, so that a later attach to the same
build reads a few kilobytes and decodes nothing. The kernel's own tables stay the source of truth:
an answer is kept with its witness, the bytes it was read from, and holds only where they are.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault, UsageError
from qvmi.symbols.kallsyms import Addressing, KallsymsTables
from qvmi.symbols.layout import Field
from qvmi.symbols.witness import Witness

__all__ = [
    "MAX_BANNER",
    "KnownBuild",
    "Profile",
    "ProfileCache",
    "enumerator_key",
    "field_key",
    "size_key",
    "symbol_key",
]

Answer = TypeVar("Answer")

MAX_BANNER: Final = 512
"""Bytes; a banner is about 150 long."""

_VERSION: Final = 5
_MAX_FILE: Final = 4 << 20
"""Bytes; a profile of everything that qvmi itself asks for takes about 10 KiB."""
_MAX_FILES: Final = 1000
"""Kernel builds looked through at an attach; more are ignored, oldest last."""
_MAX_RECENT: Final = 8
"""Kernel builds that are tried before anything is searched for; a host runs a few at a time."""
_FILE_NAME: Final = re.compile(r"[0-9a-f]{1,16}-[0-9a-f]{32}\.json")
_IMAGE_SPAN: Final = 1 << 30
"""Addresses so near behind the image's start move with it."""


def symbol_key(name: str) -> str:
    """This names the answer about a symbol among all answers of a profile."""
    return f"symbol {name}"


def field_key(question: str) -> str:
    """This names the answer about a struct's member among all answers of a profile."""
    return f"field {question}"


def enumerator_key(question: str) -> str:
    """This names the answer about an enumerator among all answers of a profile."""
    return f"enumerator {question}"


def size_key(type_name: str) -> str:
    """This names the answer about a struct's size among all answers of a profile."""
    return f"size {type_name}"


@dataclass(slots=True)
class Profile:
    """This is what is known of one kernel build, with addresses of the kernel as it runs now.

    Args:
        banner: ``linux_banner``, without the newline and NUL.
        banner_address: where it lies.
        tables: where kallsyms lies.
        gate: address of the handler of exception 0; None where it is not known.
        image_size: bytes of the image as it is mapped; 0 where that is not known.
        symbols: addresses by name; None for names that the kernel lacks.
        fields: struct members by ``type.name|alternative``; None for those that it lacks.
        sizes: of structs by name.
        enumerators: values by ``type.name``; None for those that it lacks.
        witnesses: what the answers rest on, by :func:`symbol_key` and its like.
        changed: whether there is anything to save.
    """

    banner: bytes
    banner_address: Va
    tables: KallsymsTables
    gate: Va | None = None
    image_size: int = 0
    symbols: dict[str, Va | None] = field(default_factory=dict)
    fields: dict[str, Field | None] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)
    enumerators: dict[str, int | None] = field(default_factory=dict)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    changed: bool = False

    def add_symbol(self, name: str, found: Va | None, witness: Witness | None = None) -> None:
        """This remembers an answer; only one with a witness is kept for other guests."""
        self._add(self.symbols, name, found, symbol_key(name), witness)

    def add_field(self, key: str, found: Field | None, witness: Witness | None = None) -> None:
        """This remembers an answer; only one with a witness is kept for other guests."""
        self._add(self.fields, key, found, field_key(key), witness)

    def add_size(self, type_name: str, found: int | None, witness: Witness | None = None) -> None:
        """This remembers an answer; only one with a witness is kept for other guests."""
        self._add(self.sizes, type_name, found, size_key(type_name), witness)

    def add_enumerator(self, key: str, found: int | None, witness: Witness | None = None) -> None:
        """This remembers an answer; only one with a witness is kept for other guests."""
        self._add(self.enumerators, key, found, enumerator_key(key), witness)

    def _add(
        self,
        answers: dict[str, Answer],
        question: str,
        found: Answer,
        key: str,
        witness: Witness | None,
    ) -> None:
        """This remembers an answer, unless the question is about what no kernel has."""
        if not question.isascii():
            return
        answers[question] = found
        if witness is not None:
            self.witnesses[key] = witness
            self.changed = True


class _Stored(msgspec.Struct, frozen=True):
    """This is a profile on disk: addresses in the image are relative to its start."""

    version: int
    banner: bytes
    banner_offset: int
    gate_offset: int
    image_size: int
    tables: KallsymsTables
    image_symbols: dict[str, int]
    other_symbols: dict[str, int]
    fields: dict[str, Field]
    sizes: dict[str, int]
    enumerators: dict[str, int]
    witnesses: dict[str, Witness]


class _Sealed(msgspec.Struct, frozen=True):
    """This is the file: a stored profile with its checksum."""

    sha256: str
    profile: msgspec.Raw


@dataclass(frozen=True, slots=True)
class KnownBuild:
    """This is a profile that was read before it is known where, and whether, its kernel runs.

    Args:
        stored: what the file holds.
    """

    stored: _Stored

    def start(self, gate: Va) -> Va:
        """This is where the image begins if its handler of exception 0 lies at an address."""
        return Va(gate - self.stored.gate_offset)

    @property
    def image_size(self) -> int:
        """This is the size of the mapped image in bytes."""
        return self.stored.image_size

    def profile(self, image_start: Va) -> Profile:
        """This is the profile for a kernel whose image begins at an address."""
        return _placed(self.stored, image_start)


class ProfileCache:
    """This keeps profiles in a folder, a file for each kernel build.

    A file's name tells where in the image the banner lies and what it hashes to, so that a
    running kernel is recognised by one read and one comparison for each file.

    Args:
        folder: is made when the first profile is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def match(self, image_start: Va, read: Callable[[Va, int], bytes]) -> Profile | None:
        """This finds the profile of the kernel that runs, None where there is none.

        A file that is damaged, or is not of the banner that its name says, is removed.

        Args:
            image_start: where the kernel's image starts now.
            read: reads the kernel's virtual memory.
        """
        hashes: dict[int, str] = {}
        for path, offset, name_hash in self._files():
            if offset not in hashes:
                hashes[offset] = _banner_hash(_banner_at(Va(image_start + offset), read))
            if hashes[offset] == name_hash:
                with contextlib.suppress(CorruptTable):
                    return _placed(_read(path, name_hash), image_start)
                self._remove(path)
        return None

    def recent(self) -> Iterator[KnownBuild]:
        """This iterates the builds that were learned last, of those that one gate tells the place of."""
        for path, _, name_hash in islice(self._files(), _MAX_RECENT):
            with contextlib.suppress(CorruptTable):
                stored = _read(path, name_hash)
                if stored.gate_offset and stored.image_size:
                    yield KnownBuild(stored)

    def save(self, profile: Profile, image_start: Va) -> Path:
        """This writes a profile so that a reader sees the whole of it or the one before.

        Raises:
            UsageError: the folder cannot be written, or the profile has grown too large for it.
        """
        body = msgspec.json.encode(_store(profile, image_start))
        sealed = _Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
        data = msgspec.json.encode(sealed)
        if len(data) > _MAX_FILE:
            raise UsageError(f"a profile of {len(data)} bytes is more than the {_MAX_FILE} kept")
        path = self._path(profile, image_start)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, data)
        except OSError as error:
            why = (
                f"the profile cache cannot be written, name another folder or do without"
                f" (--no-cache, use_cache=False): {error}"
            )
            raise UsageError(why) from error
        profile.changed = False
        return path

    def remove(self, profile: Profile, image_start: Va) -> None:
        """This forgets a profile that turned out to be wrong."""
        self._remove(self._path(profile, image_start))

    def _path(self, profile: Profile, image_start: Va) -> Path:
        offset = profile.banner_address - image_start
        return self.folder / f"{offset:x}-{_banner_hash(profile.banner)}.json"

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    def _files(self) -> Iterator[tuple[Path, int, str]]:
        """This iterates (path, banner's offset in the image, banner's hash), newest first."""
        try:
            paths = [path for path in self.folder.iterdir() if _FILE_NAME.fullmatch(path.name)]
        except OSError:
            return
        for path in sorted(paths, key=_changed_at, reverse=True)[:_MAX_FILES]:
            offset, _, name_hash = path.stem.partition("-")
            yield path, int(offset, 16), name_hash


def _changed_at(path: Path) -> float:
    """This is when a file was changed last; long ago if it has just been removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _replace(path: Path, data: bytes) -> None:
    """This writes a file at once: whoever opens it sees the old one or all of the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    os.close(descriptor)
    try:
        Path(name).write_bytes(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _banner_at(va: Va, read: Callable[[Va, int], bytes]) -> bytes:
    """This reads the text at an address up to its newline; empty where nothing can be read."""
    try:
        return read(va, MAX_BANNER).partition(b"\0")[0].rstrip(b"\n")
    except MemoryFault:
        return b""


def _banner_hash(banner: bytes) -> str:
    return hashlib.sha256(banner).hexdigest()[:32]


def _read(path: Path, name_hash: str) -> _Stored:
    """This reads a profile.

    Raises:
        CorruptTable: the file is damaged, of another version, or of another banner.
    """
    try:
        with path.open("rb") as file:
            sealed = msgspec.json.decode(file.read(_MAX_FILE), type=_Sealed)
        if hashlib.sha256(sealed.profile).hexdigest() != sealed.sha256:
            raise CorruptTable(str(path), "its checksum is wrong")
        stored = msgspec.json.decode(sealed.profile, type=_Stored)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        # ValueError: msgspec lets the UnicodeDecodeError of a name that is no UTF-8 through.
        raise CorruptTable(str(path), str(error)) from error
    if stored.version != _VERSION or _banner_hash(stored.banner) != name_hash:
        raise CorruptTable(str(path), f"version {stored.version}, banner {stored.banner!r}")
    return stored


def _placed(stored: _Stored, image_start: Va) -> Profile:
    """This moves a profile to where the kernel runs now."""
    symbols: dict[str, Va | None] = {
        name: Va(image_start + offset) for name, offset in stored.image_symbols.items()
    }
    symbols |= {name: Va(at) for name, at in stored.other_symbols.items()}
    return Profile(
        banner=stored.banner,
        banner_address=Va(image_start + stored.banner_offset),
        tables=_moved(stored.tables, image_start),
        gate=Va(image_start + stored.gate_offset) if stored.gate_offset else None,
        image_size=stored.image_size,
        symbols=symbols,
        fields={**stored.fields},
        sizes={**stored.sizes},
        enumerators={**stored.enumerators},
        witnesses={key: one.moved(image_start) for key, one in stored.witnesses.items()},
    )


def _store(profile: Profile, image_start: Va) -> _Stored:
    """This takes what may be believed of another guest: the answers that have a witness."""
    kept = profile.witnesses
    image: dict[str, int] = {}
    other: dict[str, int] = {}
    for name, at in _witnessed(profile.symbols, symbol_key, kept).items():
        if 0 <= at - image_start < _IMAGE_SPAN:
            image[name] = at - image_start
        else:
            other[name] = at
    return _Stored(
        version=_VERSION,
        banner=profile.banner,
        banner_offset=profile.banner_address - image_start,
        gate_offset=0 if profile.gate is None else profile.gate - image_start,
        image_size=profile.image_size,
        tables=_moved(profile.tables, -image_start),
        image_symbols=image,
        other_symbols=other,
        fields=_witnessed(profile.fields, field_key, kept),
        sizes=_witnessed(profile.sizes, size_key, kept),
        enumerators=_witnessed(profile.enumerators, enumerator_key, kept),
        witnesses={key: one.moved(-image_start) for key, one in kept.items()},
    )


def _witnessed(
    answers: Mapping[str, Answer | None],
    key_of: Callable[[str], str],
    witnesses: Mapping[str, Witness],
) -> dict[str, Answer]:
    """These are the answers that have a witness; that there is no such thing never has."""
    return {
        question: found
        for question, found in answers.items()
        if found is not None and key_of(question) in witnesses
    }


def _moved(tables: KallsymsTables, distance: int) -> KallsymsTables:
    """This moves all addresses of the tables that there are."""
    has_base = tables.addressing is not Addressing.PLACE_RELATIVE
    return replace(
        tables,
        names=Va(tables.names + distance),
        markers=Va(tables.markers + distance),
        token_table=Va(tables.token_table + distance),
        token_index=Va(tables.token_index + distance),
        offsets=Va(tables.offsets + distance),
        relative_base=tables.relative_base + distance if has_base else 0,
        seqs_of_names=Va(tables.seqs_of_names + distance) if tables.seqs_of_names else Va(0),
    )
