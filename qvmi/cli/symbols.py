"""The commands about names: ``symbol`` and ``isf``."""

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.output import Output
from qvmi.cli.values import Place
from qvmi.errors import SymbolsError
from qvmi.machine.machine import Machine
from qvmi.symbols.layout import NearestSymbol, Symbols, address

__all__ = ["symbol"]


async def symbol(machine: Machine, output: Output, *, place: Place) -> ExitCode:
    """This tells a symbol's address, or the symbol at an address.

    Raises:
        SymbolsError: there is none.
    """
    symbols = machine.symbols
    found = _by_name(symbols, place.symbol) if place.symbol else _at(symbols, Va(place.offset))
    va = Va(place.offset + (found.address if place.symbol else 0))
    offset = va - found.address
    if output.json:
        output.document({"address": va, **found._asdict(), "symbol": found.address})
        return ExitCode.FINE
    module = f" [{found.module}]" if found.module else ""
    behind = f"+{offset:#x}" if offset else ""
    output.line(f"{va:#x} {found.type or '?'} {found.name}{behind}{module}")
    return ExitCode.FINE


def _by_name(symbols: Symbols, name: str) -> NearestSymbol:
    """This finds a symbol; its type is known where no other name stands at the same address."""
    va = address(symbols, name)
    nearest = symbols.nearest(va)
    if nearest is not None and nearest.name == name:
        return nearest
    return NearestSymbol(name, va, "", "")


def _at(symbols: Symbols, va: Va) -> NearestSymbol:
    nearest = symbols.nearest(va)
    if nearest is None:
        raise SymbolsError(f"{va:#x} lies outside of all symbols of this kernel")
    return nearest
