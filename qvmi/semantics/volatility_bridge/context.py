"""One question's world, as Volatility sees it: layers, symbol table and kernel, without any search."""

from typing import Final

from volatility3.framework import contexts, interfaces

from qvmi.errors import GuestError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.layers import LAYERS, UPPER_ROOT, GuestMemoryLayer
from qvmi.semantics.volatility_bridge.page_class import page_class
from qvmi.semantics.volatility_bridge.symbol_table import KernelContent, add_symbol_table

__all__ = ["KERNEL", "KERNEL_LAYER", "PHYSICAL_LAYER", "SYMBOLS", "fresh_context"]

KERNEL: Final = "kernel"
"""The module that plugins know the kernel by."""

KERNEL_LAYER: Final = "kernel_layer"
PHYSICAL_LAYER: Final = "memory_layer"
SYMBOLS: Final = "kernel_symbols"

_METADATA: Final = {"os": "Linux"}


def fresh_context(
    guest: LinuxGuest, content: KernelContent, interruption: Interruption
) -> interfaces.context.ContextInterface:
    """This makes a context that has read nothing yet.

    Args:
        guest: whose memory is read, as its view shows it.
        content: the kernel's symbols and types.
        interruption: asked at each read.

    Raises:
        GuestError: Volatility has no layer for the guest's page tables.
    """
    image, memory = guest.kernel.image, guest.kernel.space.memory
    layer_class = LAYERS.get(image.geometry.name)
    if layer_class is None:
        raise GuestError(f"Volatility cannot read page tables of {image.geometry.name} paging")
    context = contexts.Context()
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
    context.config[f"{path}.page_map_offset"] = int(image.root)
    context.config[f"{path}.{UPPER_ROOT}"] = int(image.root)
    context.config[f"{path}.kernel_virtual_offset"] = guest.kernel.slide
    layer = layer_class(context, path, KERNEL_LAYER, dict(_METADATA))
    context.add_layer(layer)
    page = page_class(guest)
    add_symbol_table(context, SYMBOLS, content, mask=layer.address_mask, page=page)
    contexts.Module.create(
        context,
        module_name=KERNEL,
        layer_name=KERNEL_LAYER,
        offset=guest.kernel.slide,
        symbol_table_name=SYMBOLS,
    )
    return context
