"""Names of the values of the kernel's enumerations, as its own types tell them."""

from typing import Final

from qvmi.symbols.btf_names import enumerators
from qvmi.symbols.layout import Symbols
from qvmi.symbols.live import LiveSymbols

__all__ = ["EnumNames"]

_NONE: Final[dict[int, str]] = {}


class EnumNames:
    """This names values; one without a name, or of a kernel without BTF, by its number.

    Args:
        symbols: of the kernel.
    """

    def __init__(self, symbols: Symbols) -> None:
        self._btf = symbols.btf if isinstance(symbols, LiveSymbols) else None
        self._known: dict[str, dict[int, str]] = {}

    def of(self, enumeration: str, value: int) -> str:
        """This is a value's name in small letters, without the enumeration's own in front.

        Raises:
            CorruptTable: the types contradict themselves.
        """
        if enumeration not in self._known:
            names = _NONE if self._btf is None else enumerators(self._btf, enumeration)
            self._known[enumeration] = names
        name = self._known[enumeration].get(value, str(value))
        return name.lower().removeprefix(f"{enumeration}_")
