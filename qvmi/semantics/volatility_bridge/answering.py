"""A plugin's run as an answer: plain rows with their provenance, and as text if that is wanted."""

from collections.abc import Mapping

import msgspec

from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.context import KERNEL_LAYER
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.rendering import rendered
from qvmi.semantics.volatility_bridge.running import PluginRun, run_plugin
from qvmi.semantics.volatility_bridge.symbol_table import KernelContent
from qvmi.semantics.volatility_bridge.table import RenderedTable, Rendering, VolatilityTable
from qvmi.semantics.volatility_bridge.values import column_names, plain_rows
from qvmi.view import View

__all__ = ["answer", "rendered_answer", "table_of"]


def answer(
    guest: LinuxGuest,
    content: KernelContent,
    plugin: str,
    options: Mapping[str, object],
    interruption: Interruption,
) -> VolatilityTable:
    """This asks a plugin; see `qvmi.semantics.volatility_bridge.running.run_plugin` for its errors."""
    at = guest.view.moment()
    run = run_plugin(guest, content, plugin, options, interruption)
    return table_of(guest.view, run, at)


def rendered_answer(
    guest: LinuxGuest,
    content: KernelContent,
    plugin: str,
    options: Mapping[str, object],
    interruption: Interruption,
    rendering: Rendering,
) -> RenderedTable:
    """This asks a plugin, and lets one of Volatility's renderers write its answer.

    What it writes is what the guest's memory holds in this very look, some of which is read only now.
    """
    at = guest.view.moment()
    run = run_plugin(guest, content, plugin, options, interruption)
    text = rendered(run, rendering)
    table = table_of(guest.view, run, at)
    return RenderedTable(
        table.items,
        table.gaps,
        table.provenance,
        plugin=table.plugin,
        columns=table.columns,
        files=table.files,
        text=text,
    )


def table_of(view: View, run: PluginRun, at: float) -> VolatilityTable:
    """This is a run as plain rows, labelled with the view that they were read through."""
    bits = run.context.layers[KERNEL_LAYER].maximum_address.bit_length()
    label = view.provenance
    pause_s = label.pause_s + view.paused_s()
    return VolatilityTable(
        items=plain_rows(run.grid, bits),
        gaps=run.gaps,
        provenance=msgspec.structs.replace(label, at=at, pause_s=pause_s),
        plugin=run.plugin,
        columns=column_names(run.grid),
        files=run.files,
    )
