"""Plugins on Windows guests: Volatility's own layer and types, over our memory and with our page-table root.

References: Volatility 3 framework/automagic/pdbscan.py and framework/symbols/windows/pdbutil.py, for what a
symbol file of a Windows kernel says of itself. None of it is run: it may fetch symbols from the network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from volatility3.framework import contexts
from volatility3.framework.layers import intel
from volatility3.framework.symbols.windows import WindowsKernelIntermedSymbols

from qvmi.errors import GuestError, SymbolsError, UsageError
from qvmi.semantics.volatility_bridge.answering import table_of
from qvmi.semantics.volatility_bridge.context import KERNEL, KERNEL_LAYER, PHYSICAL_LAYER, SYMBOLS
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.layers import GuardedReads, GuestMemoryLayer
from qvmi.semantics.volatility_bridge.plugins import configure, find_plugin
from qvmi.semantics.volatility_bridge.running import run_in
from qvmi.semantics.volatility_bridge.table import VolatilityTable
from qvmi.semantics.windows.discovery import WindowsKernel
from qvmi.view import View

__all__ = ["windows_answer"]

_LEVELS = 4


class _WindowsLayer(GuardedReads, intel.WindowsIntel32e):
    """This is four-level paging as Windows uses it."""

    machine_code: ClassVar = "intel64"


def windows_answer(
    view: View,
    kernel: WindowsKernel,
    isf: Path,
    plugin: str,
    options: Mapping[str, object],
) -> VolatilityTable:
    """This asks a plugin about a Windows guest.

    Args:
        view: through which the guest is seen.
        kernel: that runs there.
        isf: a symbol file of exactly this kernel.
        plugin: its name, or a part of it that no other has.
        options: by the names that the plugin itself gives them.

    Raises:
        UsageError: there is no such plugin or option, or no such file.
        SymbolsError: the file is no symbol file, or that of another kernel.
        PluginFailed: the plugin failed before its first row.
    """
    at = view.moment()
    interruption = Interruption()
    full, found = find_plugin(plugin, "Windows")
    context = _context(kernel, isf, interruption)
    configure(context, full, found, options)
    return table_of(view, run_in(context, full, found, interruption), at)


def _context(kernel: WindowsKernel, isf: Path, interruption: Interruption) -> Any:
    if len(kernel.space.geometry.levels) != _LEVELS:
        raise GuestError("Volatility cannot read Windows' page tables of five levels")
    context = contexts.Context()
    memory = kernel.space.memory
    context.add_layer(
        GuestMemoryLayer(
            context,
            f"layers.{PHYSICAL_LAYER}",
            PHYSICAL_LAYER,
            memory=memory,
            interruption=interruption,
        )
    )
    path = f"layers.{KERNEL_LAYER}"
    context.config[f"{path}.memory_layer"] = PHYSICAL_LAYER
    context.config[f"{path}.page_map_offset"] = int(kernel.space.root)
    layer = _WindowsLayer(context, path, KERNEL_LAYER, {"os": "Windows"})
    base = int(kernel.image.base) & layer.address_mask
    context.config[f"{path}.kernel_virtual_offset"] = base
    context.add_layer(layer)
    context.symbol_space.append(_table(context, kernel, isf))
    contexts.Module.create(
        context,
        module_name=KERNEL,
        layer_name=KERNEL_LAYER,
        offset=base,
        symbol_table_name=SYMBOLS,
    )
    return context


def _table(context: Any, kernel: WindowsKernel, isf: Path) -> Any:
    """This is the symbol table of a file, which must be that of the kernel."""
    if not isf.is_file():
        raise UsageError(f"no symbol file {isf}")
    try:
        table = WindowsKernelIntermedSymbols(
            context, f"symbols.{SYMBOLS}", SYMBOLS, isf_url=isf.absolute().as_uri()
        )
        metadata = table.metadata
        described = (str(metadata.pdb_guid).upper(), metadata.pdb_age)
    except Exception as error:  # whatever Volatility makes of a file of the user's
        problem = f"{type(error).__name__}: {error}"
        raise SymbolsError(f"{isf} is no symbol file of a Windows kernel: {problem}") from error
    if described != (kernel.pdb.guid, kernel.pdb.age):
        guid, age = described
        raise SymbolsError(f"{isf} is of {guid}-{age}, the kernel that runs of {kernel.pdb}")
    return table
