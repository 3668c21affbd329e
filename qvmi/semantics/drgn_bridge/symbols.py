"""A kernel's symbols, and those of the modules that are loaded at the moment, as drgn's.

References: drgn's ``Program.register_symbol_finder``; nm(1) for the letters.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from drgn import Symbol, SymbolBinding, SymbolKind

from qvmi.addr import Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.live import LiveSymbols

__all__ = ["GuestSymbols"]

_KINDS: Final = {
    "t": SymbolKind.FUNC,
    "w": SymbolKind.FUNC,
    "d": SymbolKind.OBJECT,
    "b": SymbolKind.OBJECT,
    "r": SymbolKind.OBJECT,
    "v": SymbolKind.OBJECT,
}


class GuestSymbols:
    """This finds symbols by name and address; nothing of the modules is kept.

    Args:
        guest: whose they are.
        symbols: of its kernel.
    """

    def __init__(self, guest: LinuxGuest, symbols: LiveSymbols) -> None:
        self._guest = guest
        self._symbols = symbols

    def find(self, name: str | None, address: int | None, *, one: bool) -> list[Symbol]:
        """These are the symbols of a name, of an address, of both, or all; the first one, or all."""
        if address is not None:
            found = self._at(Va(address))
        elif name is not None and one:
            found = self._first_named(name)
        else:
            found = self._all(name)
        matching = (symbol for symbol in found if name in {None, symbol.name})
        return list(islice(matching, 1 if one else None))

    def _at(self, va: Va) -> Iterator[Symbol]:
        image = self._guest.kernel.image
        if image.start <= va <= image.end:
            nearest = self._symbols.nearest(va)
            if nearest is not None:
                yield self._kernel_symbol(nearest.name, nearest.address, nearest.type)
            return
        # Assemblers' marks, such as `$x`, name no address; the kernel passes over them as well.
        rows = [row for row in self._guest.module_symbols() if not row.name.startswith("$")]
        at = max((row.address for row in rows if row.address <= va), default=None)
        owner = None if at is None else self._guest.nearest(va)
        for row in rows:
            if owner is not None and row.address == at == owner.address:
                yield _symbol(row.name, row.address, va - row.address + 1, row.type)

    def _first_named(self, name: str) -> Iterator[Symbol]:
        kallsyms = self._symbols.kallsyms
        index = kallsyms.index_of(name)
        if index is not None:
            found = kallsyms.at(index)
            yield self._kernel_symbol(found.name, found.address, found.type)
        yield from self._of_modules(name)

    def _all(self, name: str | None) -> Iterator[Symbol]:
        for found in self._symbols.kallsyms.symbols():
            if name in {None, found.name}:
                yield self._kernel_symbol(found.name, found.address, found.type)
        yield from self._of_modules(name)

    def _of_modules(self, name: str | None) -> Iterator[Symbol]:
        for row in self._guest.module_symbols():
            if name in {None, row.name}:
                yield _symbol(row.name, row.address, 1, row.type)

    def _kernel_symbol(self, name: str, at: Va, letter: str) -> Symbol:
        """This is a symbol of the kernel, which reaches to the next one."""
        end = self._symbols.kallsyms.end_of(at)
        return _symbol(name, at, max(end - at, 1), letter)


def _symbol(name: str, at: int, size: int, letter: str) -> Symbol:
    binding = SymbolBinding.GLOBAL if letter.isupper() else SymbolBinding.LOCAL
    if letter.lower() in {"w", "v"}:
        binding = SymbolBinding.WEAK
    kind = _KINDS.get(letter.lower(), SymbolKind.UNKNOWN)
    return Symbol(name, at, size, binding, kind)
