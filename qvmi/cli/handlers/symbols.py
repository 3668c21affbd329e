"""The commands about names: ``symbol`` and ``isf``."""

from pathlib import Path
from typing import Final

from qvmi.addr import Va
from qvmi.cli.declared.values import Place
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.errors import SymbolsError, UsageError
from qvmi.machine.machine import Machine
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.kernel.guest_symbols import GuestSymbols
from qvmi.symbols.isf import write_isf
from qvmi.symbols.layout import NearestSymbol
from qvmi.symbols.live import LiveSymbols

__all__ = ["isf", "symbol"]

_ISF_S: Final = 600.0
"""How long all symbols and types may take: seconds, of which compressing them as .xz is the most."""


async def symbol(machine: Machine, output: Output, *, place: Place) -> ExitCode:
    """This tells a symbol's address, or the symbol at an address.

    Raises:
        SymbolsError: there is none.
    """
    found = await machine.query(lambda guest: _found(guest.symbols, place))
    va = Va(place.offset + (found.address if place.symbol else 0))
    offset = va - found.address
    if output.json:
        known = found._asdict() | {"address": va, "offset": offset}
        output.document(known)
        return ExitCode.FINE
    module = f" [{found.module}]" if found.module else ""
    behind = f"+{offset:#x}" if offset else ""
    output.line(f"{va:#x} {found.type or '?'} {found.name}{behind}{module}")
    return ExitCode.FINE


def _found(symbols: GuestSymbols, place: Place) -> NearestSymbol:
    if place.symbol:
        return symbols.symbol(place.symbol)
    found = symbols.nearest(Va(place.offset))
    if found is None:
        raise SymbolsError(f"{place.offset:#x} lies outside of all symbols of this kernel")
    return found


async def isf(machine: Machine, output: Output, *, path: str) -> ExitCode:
    """This writes the symbols and types of the kernel that runs as an ISF file.

    Raises:
        UsageError: the file cannot be written, or there is nothing to write that is not in one.
        SymbolsError, MemoryFault: the kernel's tables cannot be read.
    """
    size = await machine.query(
        lambda guest: _write(guest.kernel, Path(path)), timeout_s=_ISF_S, still=False
    )
    if output.json:
        output.document({"path": path, "size": size})
    else:
        output.line(f"{path}: {size} bytes")
    return ExitCode.FINE


def _write(kernel: Kernel, file: Path) -> int:
    """This writes the file and gives its size in bytes."""
    symbols = kernel.symbols
    if not isinstance(symbols, LiveSymbols):
        raise UsageError("the symbols come from a file: leave --isf out to take the kernel's own")
    write_isf(symbols, file, slide=kernel.slide, banner=kernel.banner)
    return file.stat().st_size
