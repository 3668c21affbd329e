"""A kernel's symbols and types as Volatility's symbol table, out of memory instead of a file.

References: Volatility 3 framework/symbols/intermed.py (the formats), framework/symbols/linux/__init__.py.
"""

import json
from collections.abc import Iterator, KeysView, Mapping
from typing import Any, Final

import msgspec
from volatility3.framework import interfaces
from volatility3.framework.symbols import intermed
from volatility3.framework.symbols.linux import LinuxKernelIntermedSymbols
from volatility3.framework.symbols.linux.network import NetSymbols

from qvmi.errors import CorruptTable, UsageError
from qvmi.semantics.linux.discovery import Kernel
from qvmi.symbols.isf import isf_document
from qvmi.symbols.isf_compression import decompress
from qvmi.symbols.isf_file import IsfSymbols
from qvmi.symbols.isf_schema import Document
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.whole_file import open_regular

__all__ = ["IsfContent", "add_symbol_table", "isf_content"]

_MAX_FILE: Final = 128 << 20
"""Bytes of JSON, as in `qvmi.symbols.isf_file`."""

_VERSION: Final = (6, 2, 0)


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


IsfContent = Mapping[str, Mapping[str, Any]]
"""The sections of an ISF file by name, as Volatility reads them."""


def isf_content(kernel: Kernel) -> IsfContent:
    """This gathers the symbols and types of a kernel, once for all questions about it.

    Raises:
        CorruptTable: it has no types, or its tables contradict themselves.
        MemoryFault: a table cannot be read.
    """
    symbols = kernel.symbols
    if isinstance(symbols, LiveSymbols):
        return _of_document(isf_document(symbols, slide=kernel.slide, banner=kernel.banner))
    if isinstance(symbols, IsfSymbols):
        return _of_file(symbols)
    raise CorruptTable("symbols", f"Volatility cannot be given {type(symbols).__name__}")


def _of_document(document: Document) -> IsfContent:
    return {
        "metadata": msgspec.to_builtins(document.metadata),
        "base_types": msgspec.to_builtins(document.base_types),
        "user_types": _Section(document.user_types),
        "enums": _Section(document.enums),
        "symbols": _Section(document.symbols),
    }


def _of_file(symbols: IsfSymbols) -> IsfContent:
    """This reads the user's file again, all of it this time."""
    path = symbols.file.path
    try:
        with open_regular(path) as file:
            content: IsfContent = json.loads(decompress(file, str(path), limit=_MAX_FILE))
    except OSError as error:
        raise UsageError(f"cannot read the ISF file {path}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptTable(str(path), f"it is no ISF file any more: {error}") from error
    return content


class _Format(intermed.Version8Format):  # type: ignore[misc] # Volatility is untyped
    """This is the format of our own content, which is not copied to tell the names of its types."""

    hidden = True  # from the search for formats of files

    @property
    def types(self) -> KeysView[str]:
        """These are the names of all types."""
        return (dict.fromkeys(self._json_object["user_types"]) | self._natives).keys()

    @property
    def _natives(self) -> dict[str, None]:
        return dict.fromkeys(self.natives.types)


class _FromMemory(intermed.IntermediateSymbolTable):  # type: ignore[misc] # Volatility is untyped
    """This takes the content where its parent class would read a file."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        content: IsfContent,
    ) -> None:
        # What the parent's constructor does, but for the file.
        self._delegate = _format(content)(context, config_path, name, content)
        interfaces.symbols.SymbolTableInterface.__init__(
            self, context, config_path, name, self._delegate.natives
        )


class _KernelTable(LinuxKernelIntermedSymbols, _FromMemory):  # type: ignore[misc] # Volatility is untyped
    """This is the symbol table of a Linux kernel: its methods, our content."""


def _format(content: IsfContent) -> Any:  # noqa: ANN401 - a class of Volatility's, which is untyped
    version = str(content["metadata"].get("format", "0.0.0"))
    if version == ".".join(map(str, _VERSION)):
        return _Format
    known = {one.version: one for one in intermed.class_subclasses(intermed.ISFormatTable)}
    return intermed.IntermediateSymbolTable._closest_version(version, known)  # noqa: SLF001 - the one place that knows


def add_symbol_table(
    context: interfaces.context.ContextInterface, name: str, content: IsfContent, *, mask: int
) -> None:
    """This adds a kernel's symbols to a context.

    Args:
        context: of the question.
        name: of the table.
        content: of the kernel.
        mask: the bits of an address that its layer keeps. Without it no address has a name, for
            Volatility cuts the ones it finds to these bits, and not those of the symbols.
    """
    path = f"symbols.{name}"
    # The constructor's own argument comes too late for the part of the table that looks at it.
    context.config[f"{path}.symbol_mask"] = mask
    table = _KernelTable(context, path, name, content)
    NetSymbols.apply(table)  # the plugins that need it count on another one to have done it
    context.symbol_space.append(table)
