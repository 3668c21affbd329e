"""A kernel's symbols and types as Volatility's symbol table, out of memory instead of a file.

References: Volatility 3 framework/symbols/intermed.py (the formats), framework/symbols/linux/__init__.py.
"""

import json
from collections.abc import Iterable, Iterator, KeysView, Mapping
from functools import cached_property
from typing import Any, Final

import msgspec
from volatility3.framework import interfaces
from volatility3.framework.exceptions import VolatilityException
from volatility3.framework.symbols import intermed
from volatility3.framework.symbols.linux import LinuxKernelIntermedSymbols
from volatility3.framework.symbols.linux.network import NetSymbols

from qvmi.errors import CorruptTable, UsageError
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.volatility_bridge.corrections import corrected
from qvmi.semantics.volatility_bridge.type_classes import set_type_classes
from qvmi.symbols.isf import isf_document
from qvmi.symbols.isf_compression import decompress
from qvmi.symbols.isf_file import IsfSymbols
from qvmi.symbols.isf_schema import Document
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.whole_file import open_regular

__all__ = ["KernelContent", "add_symbol_table", "kernel_content"]

_MAX_FILE: Final = 128 << 20
"""Bytes of JSON, as in `qvmi.symbols.isf_file`."""

_UNUSABLE: Final = (VolatilityException, AttributeError, LookupError, TypeError, ValueError)
"""What Volatility raises over a file or a kernel that lacks what it counts on, or has it wrong."""

_VERSION: Final = "6.2.0"
_MOST_CONNECTED: Final = "task_struct"
"""The type that leads to most others."""


class _Section(Mapping[str, dict[str, Any]]):
    """This is a part of the document whose entries become Volatility's when they are asked for.

    A question needs some hundred of 10,000 types and 190,000 symbols.
    """

    def __init__(self, entries: Mapping[str, msgspec.Struct]) -> None:
        self._entries = entries
        self._made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = msgspec.to_builtins(self._entries[name])
        return made

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


Sections = Mapping[str, Mapping[str, Any]]
"""The sections of an ISF file by name, as Volatility reads them."""


class KernelContent:
    """This is what Volatility is to know of one kernel, for all questions about it.

    It keeps what Volatility would work out anew for each question from these symbols and types alone.

    Args:
        sections: of an ISF file.
    """

    def __init__(self, sections: Sections) -> None:
        self.sections = sections
        self.resolved: dict[str, Any] = {}
        """Templates of types by name, as the space of all symbols finds them."""
        self._by_address: dict[int, list[tuple[int, str]]] = {}

    def by_address(self, mask: int) -> list[tuple[int, str]]:
        """These are (address, name) of all symbols in rising order, cut to the bits of a mask."""
        if mask not in self._by_address:
            symbols = self.sections["symbols"]
            self._by_address[mask] = sorted(
                (symbols[name]["address"] & mask, name) for name in symbols
            )
        return self._by_address[mask]


def kernel_content(kernel: Kernel) -> KernelContent:
    """This gathers the symbols and types of a kernel, once for all questions about it.

    Raises:
        CorruptTable: it has no types, or its tables contradict themselves.
        MemoryFault: a table cannot be read.
    """
    symbols = kernel.symbols
    if isinstance(symbols, LiveSymbols):
        document = isf_document(symbols, slide=kernel.slide, banner=kernel.banner)
        return KernelContent(_of_document(document))
    if isinstance(symbols, IsfSymbols):
        return KernelContent(_of_file(symbols))
    raise CorruptTable("symbols", f"Volatility cannot be given {type(symbols).__name__}")


def _of_document(document: Document) -> Sections:
    return {
        "metadata": msgspec.to_builtins(document.metadata),
        "base_types": msgspec.to_builtins(document.base_types),
        "user_types": _Section(corrected(document.user_types)),
        "enums": _Section(document.enums),
        "symbols": _Section(document.symbols),
    }


def _of_file(symbols: IsfSymbols) -> Sections:
    """This reads the user's file again, all of it this time."""
    path = symbols.file.path
    try:
        with open_regular(path) as file:
            content: Sections = json.loads(decompress(file, str(path), limit=_MAX_FILE))
    except OSError as error:
        raise UsageError(f"cannot read the ISF file {path}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptTable(str(path), f"it is no ISF file any more: {error}") from error
    return content


class _Format(intermed.Version8Format):
    """This is the format of our own content, which is not copied each time that a type's name is asked."""

    hidden = True  # from the search for formats of files

    @cached_property
    def types(self) -> KeysView[str]:
        """These are the names of all types."""
        names = dict.fromkeys(self._json_object["user_types"])
        return (names | dict.fromkeys(self.natives.types)).keys()


class _FromMemory(intermed.IntermediateSymbolTable):
    """This takes the content where its parent class would read a file."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        content: KernelContent,
    ) -> None:
        self._content = content
        # What the parent's constructor does, but for the file.
        self._delegate = _format(content.sections)(context, config_path, name, content.sections)
        interfaces.symbols.SymbolTableInterface.__init__(
            self, context, config_path, name, self._delegate.natives
        )


class _KernelTable(LinuxKernelIntermedSymbols, _FromMemory):
    """This is the symbol table of a Linux kernel: its methods, our content."""

    _sort_symbols: list[tuple[int, str]]
    _space: interfaces.symbols.SymbolSpaceInterface | None = None

    def join(self, space: interfaces.symbols.SymbolSpaceInterface) -> None:
        """This enters the table into a space, with the types that earlier questions resolved.

        Volatility resolves a type together with all that it leads to, which is half a kernel and
        takes longer than to list its processes. The result has nothing of any guest's memory.
        """
        space.append(self)
        resolved = self._content.resolved
        if not resolved:
            space.get_type(f"{self.name}!{_MOST_CONNECTED}")
            resolved |= space._resolved  # noqa: SLF001 - there is no other way to them
        space._resolved.update(resolved)  # noqa: SLF001 - as above
        self._space = space

    def get_symbols_by_location(self, offset: int, size: int = 0) -> Iterable[str]:
        """This iterates the names of the symbols at an address."""
        if not self._sort_symbols:
            self._sort_symbols = self._content.by_address(self._delegate.config["symbol_mask"])
        names: Iterable[str] = super().get_symbols_by_location(offset, size)
        return names

    def set_type_class(self, name: str, clazz: type) -> None:
        """This gives a type methods; what was resolved without them is resolved again."""
        if self._delegate.get_type_class(name) is clazz and name in self.types:
            return  # some plugins say again what is so already, for each process
        self._delegate.set_type_class(name, clazz)
        if self._space is not None:
            self._space._resolved.clear()  # noqa: SLF001 - as above


def _format(sections: Sections) -> Any:
    version = str(sections["metadata"].get("format", "0.0.0"))
    if version == _VERSION:
        return _Format
    known = {one.version: one for one in intermed.class_subclasses(intermed.ISFormatTable)}
    return intermed.IntermediateSymbolTable._closest_version(version, known)  # noqa: SLF001 - the one place that knows


def add_symbol_table(
    context: interfaces.context.ContextInterface,
    name: str,
    content: KernelContent,
    *,
    mask: int,
    page: type | None = None,
) -> None:
    """This adds a kernel's symbols to a context.

    Args:
        context: of the question.
        name: of the table.
        content: of the kernel.
        mask: the bits of an address that its layer keeps. Without it no address has a name, for
            Volatility cuts the ones it finds to these bits, and not those of the symbols.
        page: the class of ``struct page``; None for Volatility's own.

    Raises:
        CorruptTable: Volatility cannot use them, as without a type that it counts on.
    """
    path = f"symbols.{name}"
    # The constructor's own argument comes too late for the part of the table that looks at it.
    context.config[f"{path}.symbol_mask"] = mask
    try:
        table = _KernelTable(context, path, name, content)
        NetSymbols.apply(table)  # the plugins that need it count on another one to have done it
        set_type_classes(table)
        if page is not None:
            table.set_type_class("page", page)
        table.join(context.symbol_space)
    except _UNUSABLE as error:
        problem = f"Volatility cannot use them: {type(error).__name__}: {error}"
        raise CorruptTable("the kernel's symbols and types", problem) from error
