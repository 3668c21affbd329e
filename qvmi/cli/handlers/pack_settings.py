"""How the options that were typed for codepacks (``--set``) become what each of them is made with."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, cast

from qvmi.cli.declared.values import PackSetting
from qvmi.cli.printing.output import Output
from qvmi.codepacks.manifest import Manifest, built_in_manifest
from qvmi.codepacks.pack_options import Option, PackOptions, Value
from qvmi.errors import UsageError
from qvmi.machine.scanning.rule_scanner import compiled_rules
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.settings import nearest

__all__ = ["prepared_options", "ready"]

_NEEDED: Final[Mapping[str, tuple[str, str]]] = {"known-malware": ("rules", "FILE-OR-FOLDER")}
"""The option without which a codepack can do nothing, and what it takes."""

_WORDS: Final = {"true": True, "false": False}
_WANTED: Final = {bool: "true or false", int: "a whole number", float: "a number"}
"""What a value is that any text would not do for."""


def ready(
    names: Sequence[str], named: Sequence[str], settings: Sequence[PackSetting], output: Output
) -> tuple[str, ...]:
    """These are the codepacks that have what they need; those that nobody has named are left out, and told.

    Args:
        names: of qvmi's own that are to run.
        named: those that were asked for by their names.
        settings: what was typed for them.
        output: where it is told.

    Raises:
        UsageError: one was named, and lacks what it needs.
    """
    for name in names:
        given = {one.option for one in settings if one.pack == name}
        # An option that there is not may be the misspelt one: `prepared_options` says what there is.
        if name not in _NEEDED or _NEEDED[name][0] in given or _unknown(name, given):
            continue
        option, what = _NEEDED[name]
        words = f"it needs {option}: --set {name}.{option}={what}"
        if name in named:
            raise UsageError(f"{name} cannot run: {words}")
        output.message(f"{name} is left out: {words}")
        names = tuple(one for one in names if one != name)
    return tuple(names)


def _unknown(name: str, options: set[str]) -> bool:
    return not options <= built_in_manifest(name).baseline.keys()


@asynccontextmanager
async def prepared_options(
    manifests: Sequence[Manifest], settings: Sequence[PackSetting]
) -> AsyncIterator[Mapping[str, PackOptions]]:
    """This is what each codepack is made with, for the length of the block, for which files are open.

    Raises:
        UsageError: there is no such codepack or option, or it cannot be used; says the way out.
    """
    names = [one.name for one in manifests]
    for setting in settings:
        if setting.pack not in names:
            raise UsageError(
                f"--set {setting.pack}.{setting.option}: no such codepack is to"
                f" run{nearest(setting.pack, names)}"
            )
    with ExitStack() as stack:
        # Rules may take seconds to compile.
        yield {
            one.name: await asyncio.to_thread(_prepared, one, settings, stack) for one in manifests
        }


def _prepared(manifest: Manifest, settings: Sequence[PackSetting], stack: ExitStack) -> PackOptions:
    values = dict(manifest.baseline)
    lists: dict[str, list[Value]] = {}
    for one in settings:
        if one.pack != manifest.name:
            continue
        default = _default(manifest, one)
        if isinstance(default, list):
            values[one.option] = lists.setdefault(one.option, [])
            lists[one.option].append(_read(one, default[0] if default else ""))
        else:
            values[one.option] = _read(one, default)
    prepare = _PREPARED.get(manifest.name)
    return PackOptions(values) if prepare is None else prepare(values, stack)


def _default(manifest: Manifest, setting: PackSetting) -> Option:
    """This is what an option is by the manifest, which also tells its type."""
    if setting.option not in manifest.baseline:
        known = list(manifest.baseline)
        there = nearest(setting.option, known) if known else ": it has none"
        raise UsageError(f"{manifest.name} has no option {setting.option!r}{there}")
    return manifest.baseline[setting.option]


def _read(setting: PackSetting, default: Value) -> Value:
    """This reads a value of the type that the default has."""
    try:
        if isinstance(default, bool):
            return _WORDS[setting.value]
        return type(default)(setting.value)
    except (ValueError, KeyError):
        name, wanted = f"--set {setting.pack}.{setting.option}", _WANTED[type(default)]
        raise UsageError(f"{name}: {setting.value!r} is no value for it: give {wanted}") from None


def _with_compiled_rules(values: Mapping[str, Option], stack: ExitStack) -> PackOptions:
    """This compiles rules here, where they can be read and whoever starts it learns what is wrong."""
    paths = cast("Sequence[str]", values["rules"])
    compiled = compiled_rules(ScanRules.of_places(map(Path, paths)))
    stack.callback(os.close, compiled)
    rest = {name: value for name, value in values.items() if name != "rules"}
    return PackOptions({**rest, "compiled": compiled}, (compiled,))


_PREPARED: Final[Mapping[str, Callable[[Mapping[str, Option], ExitStack], PackOptions]]] = {
    "known-malware": _with_compiled_rules
}
"""Codepacks whose options are made ready before they are handed over."""
