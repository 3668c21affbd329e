"""The file of playbooks: strict TOML, which says at once what of it cannot be meant.

References: TOML v1.0.0; MITRE ATT&CK for ids of techniques.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from qvmi.bus.requests import MAX_DEADLINE_S
from qvmi.bus.topic import REPLY, REQUEST, is_name
from qvmi.codepacks.alert import AlertState
from qvmi.codepacks.status import STATUS
from qvmi.errors import BadSettings
from qvmi.manager.response.playbook import HOUR_S, MAX_PER_HOUR, Manner, Playbook, When
from qvmi.manager.response.records import RESPONSE
from qvmi.manager.response.steps import (
    MAX_LONGEST_S,
    STEPS,
    DiskSnapshot,
    Dump,
    Evidence,
    Pause,
    Resume,
    Say,
    Step,
)
from qvmi.settings import Table, nearest, read_settings

__all__ = ["PLAYBOOK_FILE_VERSION", "parse_playbooks", "read_playbooks"]

PLAYBOOK_FILE_VERSION: Final = 1

MAX_PLAYBOOKS: Final = 64
"""Playbooks of one file; each alert is compared with all of them."""

MAX_STEPS: Final = 32
"""Steps of one playbook; there are nine kinds."""

_MAX_TEXT: Final = 2000
"""Letters of a message's text."""

_TAKEN: Final = frozenset({REQUEST, REPLY, RESPONSE, STATUS, *AlertState})
"""Kinds of messages that have a form of their own, which a text is not."""

_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_TECHNIQUE: Final = re.compile(r"T[0-9]{4}(\.[0-9]{3})?")

Form = TypeVar("Form")


class _PlaybookForm(Manner, frozen=True):
    """This is a playbook's table, whose steps are read one by one."""

    when: When
    then: list[dict[str, object]]


def read_playbooks(path: Path) -> tuple[Playbook, ...]:
    """This reads a file of playbooks.

    Raises:
        BadSettings: it cannot be read, others may change it, or something in it cannot be right; says
            where, and the way out.
    """
    return parse_playbooks(path, read_settings(path))


def parse_playbooks(path: Path | str, data: bytes) -> tuple[Playbook, ...]:
    """This reads the bytes of such a file; raises as :func:`read_playbooks`."""
    file = Table.parse(path, data)
    file.require_known("version", "playbooks")
    version = file.values.get("version")
    if type(version) is not int or version != PLAYBOOK_FILE_VERSION:
        why = "is missing" if version is None else f"of {version!r} is not known"
        raise file.wrong("version", f"{why}: write version = {PLAYBOOK_FILE_VERSION}")
    books = file.table("playbooks")
    if not 1 <= len(books.values) <= MAX_PLAYBOOKS:
        raise file.wrong("playbooks", f"has {len(books.values)}: give 1 to {MAX_PLAYBOOKS}")
    for name in books.values:
        if not _NAME.fullmatch(name):
            raise books.wrong(name, "is no playbook's name: 1 to 32 of a-z, 0-9 and -")
    return tuple(_playbook(name, books.table(name)) for name in books.values)


def _playbook(name: str, table: Table) -> Playbook:
    form = table.read_as(_PlaybookForm)
    _require_when(table.table("when"), form.when)
    if not 1 <= len(form.then) <= MAX_STEPS:
        raise table.wrong("then", f"has {len(form.then)} steps: give 1 to {MAX_STEPS}")
    if not 1 <= form.at_most_per_hour <= MAX_PER_HOUR:
        raise table.wrong("at-most-per-hour", f"is {form.at_most_per_hour}: 1 to {MAX_PER_HOUR}")
    if form.folder and not Path(form.folder).is_absolute():
        raise table.wrong("folder", f"is {form.folder!r}: write where it is, from / on")
    steps = tuple(_Place(table, number).step(one) for number, one in enumerate(form.then, start=1))
    _require_order(table, steps)
    if not form.folder and any(isinstance(step, Dump | Evidence) for step in steps):
        raise table.wrong("folder", "is missing: dump and evidence need one")
    manner = {key: getattr(form, key) for key in Manner.__struct_fields__}
    return Playbook(name, form.when, steps, **manner)


def _require_when(table: Table, when: When) -> None:
    """This raises BadSettings where no alert could be meant."""
    if when.technique is not None and not _TECHNIQUE.fullmatch(when.technique):
        raise table.wrong("technique", f"is {when.technique!r}, no id such as T1014 or T1014.001")
    agree, ask = when.agree, when.ask
    for place, key, codepack in (
        (table, "codepack", when.codepack),
        (table.table("agree"), "codepack", None if agree is None else agree.codepack),
        (table.table("ask"), "codepack", None if ask is None else ask.codepack),
    ):
        if codepack is not None and not is_name(codepack):
            raise place.wrong(key, f"is {codepack!r}, no codepack's name")
    if agree is not None:
        if when.codepack is None or when.codepack == agree.codepack:
            raise table.wrong("codepack", "must name another one than agree.codepack: two agree")
        _require_within(table.table("agree"), "within-s", agree.within_s, HOUR_S)
    if ask is not None:
        _require_within(table.table("ask"), "deadline-s", ask.deadline_s, MAX_DEADLINE_S)


def _require_within(table: Table, key: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise table.wrong(key, f"is {value:g}: above 0, and {most:g} at most")


def _require_order(table: Table, steps: tuple[Step, ...]) -> None:
    """This raises BadSettings at a pause within a pause, and at the end of one that is none."""
    paused = False
    for number, step in enumerate(steps, start=1):
        if isinstance(step, Pause | Resume):
            if paused == isinstance(step, Pause):
                why = "is in a pause already" if paused else "has no pause before it"
                raise table.wrong("then", f"step {number} {why}")
            paused = not paused


@dataclass(frozen=True, slots=True)
class _Place:
    """This is where a step stands in the file."""

    table: Table
    number: int

    def step(self, values: dict[str, object]) -> Step:
        """This reads it.

        Raises:
            BadSettings: there is no such step, or it cannot be taken so.
        """
        word = values.get("do")
        if not isinstance(word, str) or word not in STEPS:
            what = "has no do" if word is None else f"has do = {word!r}"
            raise self._wrong(f"{what}{nearest(str(word), tuple(STEPS))}")
        rest = {key: value for key, value in values.items() if key != "do"}
        try:
            step = msgspec.convert(rest, STEPS[word], strict=True)
        except msgspec.ValidationError as error:
            known = ", ".join(one.encode_name for one in msgspec.structs.fields(STEPS[word]))
            raise self._wrong(f"({word}): {error}; it knows {known or 'no keys'}") from error
        self._require_sound(word, step)
        return step

    def _require_sound(self, word: str, step: Step) -> None:
        if isinstance(step, Pause | Dump):
            longest = step.longest_s
            if not (math.isfinite(longest) and 0 < longest <= MAX_LONGEST_S):
                why = f"longest-s = {longest:g}: above 0, and {MAX_LONGEST_S:g} at most"
                raise self._wrong(f"({word}) has {why}")
        folder = step.overlay_folder if isinstance(step, DiskSnapshot) else None
        if folder is not None and not Path(folder).is_absolute():
            raise self._wrong(f"({word}): overlay-folder must be written from / on")
        if isinstance(step, Say):
            if not is_name(step.kind) or step.kind in _TAKEN:
                raise self._wrong(f"({word}): kind {step.kind!r} cannot be used")
            if not 1 <= len(step.text) <= _MAX_TEXT:
                raise self._wrong(f"({word}): text of 1 to {_MAX_TEXT} letters")

    def _wrong(self, problem: str) -> BadSettings:
        return self.table.wrong("then", f"step {self.number} {problem}")
