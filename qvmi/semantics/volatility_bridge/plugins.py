"""Volatility's plugins, and the user's own: found by name, with the options each takes.

References: Volatility 3 cli/__init__.py and cli/volargparse.py (how names are matched and folders searched).
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import volatility3.plugins
from volatility3 import framework
from volatility3.framework import interfaces
from volatility3.framework.configuration import requirements

from qvmi.errors import UsageError
from qvmi.semantics.volatility_bridge.context import (
    KERNEL,
    KERNEL_LAYER,
    PHYSICAL_LAYER,
    SYMBOLS,
)
from qvmi.semantics.volatility_bridge.description import (
    OptionKind,
    PluginDescription,
    PluginOption,
)

__all__ = ["configure", "describe", "find_plugin", "import_all", "plugin_summaries"]

_OTHER_SYSTEMS: Final = ("windows.", "mac.")
_OTHERS: Final = {"Linux": _OTHER_SYSTEMS, "Windows": ("linux.", "mac.")}
"""Whose plugins are not for a system."""
_SCANS_RAM: Final = frozenset({"linux.vmcoreinfo.VMCoreInfo"})
"""Plugins whose memory layer is to be the guest's physical memory, as stock Volatility gives it to them."""

Plugin = type[interfaces.plugins.PluginInterface]


def import_all(folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """This imports all plugins, those of some folders of the user's first.

    The folders stay known for as long as the process lives: Volatility has one list of them.

    Returns:
        The modules that cannot be imported, mostly for want of an optional package.

    Raises:
        UsageError: a folder is none, or a plugin in it cannot be loaded.
    """
    paths = [str(folder.absolute()) for folder in folders]
    for path in paths:
        if not Path(path).is_dir():
            raise UsageError(f"{path} is no folder of plugins")
    known = [path for path in volatility3.plugins.__path__ if path not in paths]
    volatility3.plugins.__path__ = paths + known
    try:
        return tuple(sorted(framework.import_files(volatility3.plugins, ignore_errors=True)))
    except (Exception, SystemExit) as error:  # a plugin of the user's raises what it likes
        volatility3.plugins.__path__ = known
        raise UsageError(f"a plugin cannot be loaded: {type(error).__name__}: {error}") from error


def find_plugin(name: str, system: str = "Linux") -> tuple[str, Plugin]:
    """This finds a plugin by its full name, or by a part of it that no other has, as ``vol`` does.

    Args:
        name: of the plugin.
        system: which runs in the guest, ``Linux`` or ``Windows``.

    Returns:
        Its full name, and the class.

    Raises:
        UsageError: there is none, there are several, or it is for another system.
    """
    _import_home(name)
    found = {full: one for full, one in framework.list_plugins().items() if full == name}
    if not found:
        import_all()
        found = {full: one for full, one in framework.list_plugins().items() if name in full}
        found = {full: one for full, one in found.items() if full == name} or found
    fitting = {full: one for full, one in found.items() if not full.startswith(_OTHERS[system])}
    if not found:
        raise UsageError(f"Volatility has no plugin {name!r}; `qvmi vol --help` lists them")
    if not fitting:
        raise UsageError(f"the plugin {min(found)} is not for {system}, which runs in this guest")
    if len(fitting) > 1:
        raise UsageError(f"{name!r} may be one of several plugins: {', '.join(sorted(fitting))}")
    ((full, plugin),) = fitting.items()
    return full, plugin


def _import_home(name: str) -> None:
    """This imports the one module that a full name stands for: all of them take a third of a second."""
    home = name.rpartition(".")[0]
    if home and all(part.isidentifier() for part in home.split(".")):
        try:
            importlib.import_module(f"volatility3.plugins.{home}")
        except ImportError:
            return


def plugin_summaries() -> Mapping[str, str]:
    """These are the plugins for Linux or for any system, with the first line each says of itself."""
    return {
        name: _paragraphs(plugin)[0]
        for name, plugin in sorted(framework.list_plugins().items())
        if not name.startswith(_OTHER_SYSTEMS)
    }


def describe(name: str) -> PluginDescription:
    """This tells what a plugin says of itself.

    Raises:
        UsageError: there is no such plugin, or there are several.
    """
    full, plugin = find_plugin(name)
    summary, details = _paragraphs(plugin)
    options = tuple(_option(one) for one in _user_options(plugin))
    return PluginDescription(full, summary, details, options)


def _paragraphs(plugin: Plugin) -> tuple[str, str]:
    """This is the first paragraph of what a plugin says of itself on one line, and the others."""
    first, _, others = (plugin.__doc__ or "").strip().partition("\n\n")
    return " ".join(first.split()), others.strip()


def _user_options(plugin: Plugin) -> Iterable[Any]:
    """This iterates the options that a user may set, as ``vol PLUGIN --help`` shows them."""
    simple = (
        interfaces.configuration.SimpleTypeRequirement,
        requirements.ListRequirement,
        requirements.ChoiceRequirement,
    )
    return (one for one in plugin.get_requirements() if isinstance(one, simple))


def _option(one: Any) -> PluginOption:
    kind = OptionKind.VALUE
    of: type = str
    if isinstance(one, requirements.BooleanRequirement):
        kind, of = OptionKind.FLAG, bool
    elif isinstance(one, requirements.ListRequirement):
        kind, of = OptionKind.LIST, one.element_type
    elif isinstance(one, interfaces.configuration.SimpleTypeRequirement):
        of = one.instance_type
    choices = tuple(getattr(one, "choices", ()))
    return PluginOption(one.name, one.description or "", kind, of, not one.optional, choices)


def configure(
    context: interfaces.context.ContextInterface,
    name: str,
    plugin: Plugin,
    options: Mapping[str, object],
) -> None:
    """This gives a plugin what it needs: the guest, and the user's options.

    Raises:
        UsageError: it has no such option, or takes no such value.
    """
    path = f"plugins.{plugin.__name__}"
    given: dict[str, object] = {}
    for one in plugin.get_requirements():
        place = _place_of(name, one)
        if place is not None:
            given[one.name] = place
    given |= _checked(name, plugin, options)
    for option, value in given.items():
        try:
            context.config[f"{path}.{option}"] = value
        except TypeError as error:
            raise UsageError(f"{name} takes no {value!r} for {option}") from error


def _place_of(name: str, requirement: interfaces.configuration.RequirementInterface) -> str | None:
    """This is what the guest gives for a requirement that is no option; None for one that is."""
    if isinstance(requirement, requirements.ModuleRequirement):
        return KERNEL
    if isinstance(requirement, requirements.TranslationLayerRequirement):
        return PHYSICAL_LAYER if name in _SCANS_RAM else KERNEL_LAYER
    if isinstance(requirement, requirements.SymbolTableRequirement):
        return SYMBOLS
    return None


def _checked(name: str, plugin: Plugin, options: Mapping[str, object]) -> dict[str, object]:
    """These are the user's options under the plugin's own names for them."""
    known = {one.name: one for one in _user_options(plugin)}
    named = {option.replace("-", "_"): option for option in known}
    checked: dict[str, object] = {}
    for option, value in options.items():
        own = named.get(option.replace("-", "_"))
        if own is None:
            takes = ", ".join(sorted(named)) or "none"
            raise UsageError(f"{name} has no option {option!r}; it has: {takes}")
        if value is not None:
            checked[own] = _value(name, known[own], value)
    return checked


def _value(name: str, option: Any, value: object) -> object:
    """This is a value as Volatility keeps it.

    Raises:
        UsageError: it is of another type than the option.
    """
    if isinstance(option, requirements.ListRequirement):
        if isinstance(value, list | tuple | set | frozenset | range):
            elements = list(value)
            if all(isinstance(one, option.element_type) for one in elements):
                return elements
        raise UsageError(f"{name}: {option.name} is a list of {option.element_type.__name__}")
    if isinstance(option, requirements.ChoiceRequirement):
        if value not in option.choices:
            raise UsageError(f"{name}: {option.name} is one of {', '.join(option.choices)}")
        return value
    if not isinstance(value, option.instance_type):
        raise UsageError(f"{name}: {option.name} is of type {option.instance_type.__name__}")
    if isinstance(option, requirements.URIRequirement):
        return _location(name, str(value))
    return value


def _location(name: str, text: str) -> str:
    """This is the address of a file of the user's, who may give its path instead."""
    try:
        location: str = requirements.URIRequirement.location_from_file(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    return location
