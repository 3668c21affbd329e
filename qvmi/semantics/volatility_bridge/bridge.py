"""The way in: a question to a plugin, answered by Volatility if that is installed."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qvmi.errors import UsageError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.description import PluginDescription
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.table import RenderedTable, Rendering, VolatilityTable

if TYPE_CHECKING:
    from qvmi.symbols.layout import Symbols

__all__ = ["VolatilityBridge"]

Answer = TypeVar("Answer")

_ROOM: Final = "qvmi.semantics.volatility_bridge"
_PACKAGE: Final = "volatility3"


class VolatilityBridge:
    """This asks Volatility's plugins about guests.

    It keeps the symbols and types of the kernel that was asked about last. It keeps nothing that was
    read for an answer: each question reads anew.
    """

    def __init__(self) -> None:
        self._content: tuple[Symbols, Any] | None = None

    def answer(
        self,
        guest: LinuxGuest,
        plugin: str,
        options: Mapping[str, object],
        interruption: Interruption | None = None,
    ) -> VolatilityTable:
        """This asks a plugin.

        Args:
            guest: as the plugin is to see it.
            plugin: its name, such as ``linux.pslist.PsList``, or a part of it that no other has.
            options: by the names that the plugin itself gives them.
            interruption: ends the plugin from another thread.

        Raises:
            UsageError: Volatility is not installed, or there is no such plugin or option.
            PluginFailed: it failed before its first row; behind that it is a gap.
            StaleView: another kernel runs now.
            SymbolsError, MemoryFault: the kernel's own tables cannot be read.
        """
        ask: Callable[..., VolatilityTable] = _part("answering").answer
        return self._ask(
            guest, lambda content, until: ask(guest, content, plugin, options, until), interruption
        )

    def rendered(
        self,
        guest: LinuxGuest,
        plugin: str,
        options: Mapping[str, object],
        rendering: Rendering,
        interruption: Interruption | None = None,
    ) -> RenderedTable:
        """This asks a plugin, and lets a renderer of Volatility's write the answer; see `answer`."""
        ask: Callable[..., RenderedTable] = _part("answering").rendered_answer
        return self._ask(
            guest,
            lambda content, until: ask(guest, content, plugin, options, until, rendering),
            interruption,
        )

    @staticmethod
    def import_folders(folders: Sequence[Path]) -> tuple[str, ...]:
        """This imports all plugins, those in some folders of the user's first.

        Returns:
            The modules that cannot be imported, mostly for want of an optional package.

        Raises:
            UsageError: Volatility is not installed, or a folder has what cannot be loaded.
        """
        failed: tuple[str, ...] = _part("plugins").import_all(folders)
        return failed

    @staticmethod
    def plugins() -> Mapping[str, str]:
        """These are the imported plugins that fit Linux, with what each is for."""
        summaries: Mapping[str, str] = _part("plugins").plugin_summaries()
        return summaries

    @staticmethod
    def describe(plugin: str) -> PluginDescription:
        """This tells what a plugin says of itself, and which options it takes.

        Raises:
            UsageError: there is no such plugin, or there are several.
        """
        description: PluginDescription = _part("plugins").describe(plugin)
        return description

    @staticmethod
    def renderers() -> tuple[str, ...]:
        """These are the names of the renderers, those in the user's folders among them."""
        names: tuple[str, ...] = _part("rendering").renderer_names()
        return names

    def _ask(
        self,
        guest: LinuxGuest,
        ask: Callable[[Any, Interruption], Answer],
        interruption: Interruption | None,
    ) -> Answer:
        guest.require_current()
        answer = ask(self._content_of(guest), interruption or Interruption())
        guest.require_current()  # a reset in mid-walk would leave a mixture
        return answer

    def _content_of(self, guest: LinuxGuest) -> Any:
        """This is what Volatility needs to know of the kernel; it takes half a second to gather."""
        symbols = guest.kernel.symbols
        if self._content is None or self._content[0] is not symbols:
            self._content = symbols, _part("symbol_table").kernel_content(guest.kernel)
        return self._content[1]


def _part(name: str) -> ModuleType:
    """This imports a module that imports Volatility.

    Raises:
        UsageError: Volatility is not installed, or does not work.
    """
    try:
        return import_module(f"{_ROOM}.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == _PACKAGE:
            raise UsageError(
                "Volatility 3 is not installed: pip install 'qvmi[volatility]'"
            ) from error
        raise UsageError(f"Volatility 3 cannot be loaded: {error}") from error
    except (OSError, RuntimeError) as error:  # its cache folder, and its demands on Python
        raise UsageError(f"Volatility 3 cannot be loaded: {error}") from error
