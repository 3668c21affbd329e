"""What is typed behind ``vol``: which plugin and which of its options, checked before attaching."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from qvmi.cli.declared.arguments import TextWanted
from qvmi.cli.printing.escape import escaped
from qvmi.errors import UsageError
from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
from qvmi.semantics.volatility_bridge.description import (
    OptionKind,
    PluginDescription,
    PluginOption,
)
from qvmi.semantics.volatility_bridge.table import Rendering

__all__ = ["Question", "prepare"]

_OWN_OPTIONS = "options of every plugin, such as --renderer: qvmi vol --help"


@dataclass(frozen=True, slots=True)
class Question:
    """This is what is to be asked.

    Args:
        plugin: its full name.
        options: by the names that the plugin gives them.
        rendering: how the answer is to be written.
        folder: where the files go that the plugin makes.
        exact: whether one moment is to be seen.
    """

    plugin: str
    options: dict[str, Any]
    rendering: Rendering
    folder: Path
    exact: bool


class _PluginParser(ArgumentParser):
    """This raises what it would print."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def prepare(found: dict[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    """This makes a question of what was typed.

    Args:
        found: the arguments that `qvmi.cli.declared.declarations.vol` declares.
        rest: what it does not know.

    Raises:
        UsageError: Volatility is not installed, or there is no such plugin, option or renderer.
        TextWanted: help was asked for.
    """
    given = Namespace(**found)
    if given.plugin is None and not given.help:
        raise UsageError("which plugin? (see: qvmi vol --help)")
    folders = [Path(name).expanduser() for name in given.plugin_dirs.split(";") if name]
    if given.plugin is None:
        raise TextWanted(f"{given.usage_text()}\n{_all_plugins(folders)}")
    if folders:
        VolatilityBridge.import_folders(folders)
    description = VolatilityBridge.describe(given.plugin)
    parser = _parser_of(description)
    if given.help:
        raise TextWanted(parser.format_help())
    options = vars(parser.parse_args(list(rest)))
    return {"question": _question(given, description, options)}


def _question(given: Namespace, plugin: PluginDescription, options: dict[str, Any]) -> Question:
    renderers = VolatilityBridge.renderers()
    if given.renderer not in renderers:
        raise UsageError(f"no renderer {given.renderer!r}; there are: {', '.join(renderers)}")
    folder = Path(given.output_dir)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder for the plugin's files")
    rendering = Rendering(
        given.renderer, escaped, tuple(given.filters), tuple(given.hide_columns or ())
    )
    return Question(plugin.name, options, rendering, folder, given.exact)


def _all_plugins(folders: Sequence[Path]) -> str:
    """This lists the plugins; where that cannot be, it says why."""
    try:
        failed = VolatilityBridge.import_folders(folders)
        summaries = VolatilityBridge.plugins()
        renderers = ", ".join(VolatilityBridge.renderers())
    except UsageError as error:
        return f"plugins:\n  none: {error}\n"
    lines = [f"renderers: {renderers}", "", "plugins:"]
    lines += [f"  {name:<54} {text}".rstrip() for name, text in summaries.items()]
    ours = [name for name in failed if ".windows." not in name and ".mac." not in name]
    lines += [f"  {name.removeprefix('volatility3.plugins.')} cannot be loaded" for name in ours]
    return "\n".join(lines)


def _parser_of(plugin: PluginDescription) -> ArgumentParser:
    parser = _PluginParser(
        prog=f"qvmi vol {plugin.name}",
        description=plugin.summary,
        epilog=f"{plugin.details}\n{_OWN_OPTIONS}".strip(),
        allow_abbrev=False,
    )
    for option in plugin.options:
        _add_option(parser, option)
    return parser


def _add_option(parser: ArgumentParser, option: PluginOption) -> None:
    add = partial(
        parser.add_argument,
        f"--{option.name.replace('_', '-')}",
        dest=option.name,
        required=option.required,
        help=option.text.replace("%", "%%"),
    )
    if option.kind is OptionKind.FLAG:
        add(action="store_const", const=True)
        return
    values: dict[str, Any] = {"type": _whole_number if option.type is int else option.type}
    if option.kind is OptionKind.LIST:
        values["nargs"] = "+" if option.required else "*"
    if option.choices:
        values["choices"] = option.choices
    add(**values)


def _whole_number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no whole number") from error
