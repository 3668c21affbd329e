"""What Volatility's renderers write of an answer, with the guest's words made harmless.

References: Volatility 3 cli/text_renderer.py and cli/__init__.py (``run``: how a renderer is used).

A renderer mixes the guest's text with its own tabs and line ends, so the text is escaped before. JSON
does without: it has an escape for each character.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

from volatility3 import framework
from volatility3.cli import text_filter, text_renderer
from volatility3.framework import constants, exceptions, interfaces, renderers
from volatility3.framework.renderers import format_hints

from qvmi.errors import PluginFailed, UsageError
from qvmi.semantics.volatility_bridge.context import KERNEL_LAYER
from qvmi.semantics.volatility_bridge.running import PluginRun
from qvmi.semantics.volatility_bridge.table import Rendering
from qvmi.semantics.volatility_bridge.values import canonical

__all__ = ["rendered", "renderer_names"]

_JSON: Final = frozenset({"json", "jsonl"})
_DELETE: Final = "\x7f"
"""The one control character that JSON in ASCII does not escape."""


def renderer_names() -> tuple[str, ...]:
    """These are the names of all renderers, those of the user's plugin folders among them."""
    return tuple(_renderers())


def rendered(run: PluginRun, rendering: Rendering) -> str:
    """This lets a renderer write a plugin's rows.

    Raises:
        UsageError: there is no such renderer, or a filter that makes no sense.
        PluginFailed: the renderer failed.
    """
    renderer = _renderers()[rendering.renderer]()
    is_json = rendering.renderer in _JSON
    grid = _harmless_grid(run, None if is_json else rendering)
    stdout = io.StringIO()
    if not renderer.structured_output:  # scripts skip this line
        stdout.write(f"Volatility 3 Framework {constants.PACKAGE_VERSION}\n")
    try:
        renderer.filter = text_filter.CLIFilter(grid, list(rendering.filters))
        # An empty list would be taken for the wish to hide, and told so.
        renderer.column_hide_list = list(rendering.hidden_columns) or None
        # Renderers know no other place to write to.
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
            renderer.render(grid)
    except exceptions.RenderException as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # the door to plugins: a renderer may be the user's
        raise PluginFailed(run.plugin, f"its rows cannot be shown: {error}") from error
    text = stdout.getvalue()
    return text.replace(_DELETE, "\\u007f") if is_json else text


def _renderers() -> Mapping[str, Any]:
    found = framework.class_subclasses(text_renderer.CLIRenderer)
    return {renderer.name.lower(): renderer for renderer in found}


def _harmless_grid(run: PluginRun, rendering: Rendering | None) -> Any:
    """This is the same grid, with whole addresses, and with escaped text if that is wanted."""
    layer = run.context.layers[KERNEL_LAYER]
    rows: list[tuple[int, tuple[Any, ...]]] = []

    def take(node: Any, _accumulator: object) -> None:
        rows.append((node.path_depth - 1, tuple(_cells(node.values, layer, rendering))))

    run.grid.visit(None, take, None)
    grid = renderers.TreeGrid([(one.name, one.type) for one in run.grid.columns], rows)
    grid.populate()
    return grid


def _cells(values: Any, layer: Any, rendering: Rendering | None) -> Iterator[Any]:
    bits = layer.maximum_address.bit_length()
    for value in values:
        if isinstance(value, interfaces.renderers.BaseAbsentValue):
            yield value
        elif isinstance(value, format_hints.Hex):
            yield format_hints.Hex(canonical(int(value), bits))
        elif isinstance(value, renderers.Disassembly):
            # Plugins take all code of 64 bits for x86's.
            yield renderers.Disassembly(value.data, value.offset, layer.machine_code)
        elif isinstance(value, str) and rendering is not None:
            yield rendering.escape(value)
        elif isinstance(value, format_hints.MultiTypeData) and rendering is not None:
            yield _shown_as_text(value, rendering)
        else:
            yield value


def _shown_as_text(value: Any, rendering: Rendering) -> Any:
    """This shows bytes in hexadecimal where they would not be harmless text."""
    text = str(bytes(value), encoding=value.encoding, errors="replace").rstrip("\0")
    if rendering.escape(text) == text:
        return value
    return format_hints.MultiTypeData(bytes(value), value.encoding, value.split_nulls, True)
