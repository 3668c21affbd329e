"""Writing a running kernel's symbols and types as an ISF file, which Volatility 3 reads."""

from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import CorruptTable
from qvmi.symbols.isf_compression import compress
from qvmi.symbols.isf_schema import ISF_VERSION, Document, Metadata, Producer, Source, Sources
from qvmi.symbols.isf_symbols import (
    SymbolSource,
    add_missing_types,
    symbol_entries,
    table_symbols,
)
from qvmi.symbols.isf_types import kernel_types
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.whole_file import write_whole

__all__ = ["isf_document", "write_isf"]

_METADATA: Final = Metadata(
    linux=Sources(
        symbols=(Source("kallsyms of the running kernel", "symtab"),),
        types=(Source("BTF of the running kernel"),),
    ),
    # Volatility asks for this producer by name and version, meaning the conventions it keeps to.
    producer=Producer("dwarf2json", "0.9.0", generator="qvmi"),
    format=ISF_VERSION,
)


def isf_document(symbols: LiveSymbols, *, slide: int, banner: bytes) -> Document:
    """This gathers all symbols and types of a running kernel.

    The same build gives the same document, wherever KASLR has put it.

    Args:
        symbols: of the kernel.
        slide: the distance that KASLR moved it, in bytes.
        banner: its ``linux_banner``, without the newline and NUL.

    Raises:
        CorruptTable: the kernel has no BTF, or its tables contradict themselves.
        MemoryFault: a table cannot be read.
    """
    btf = symbols.btf
    if btf is None:
        raise CorruptTable("BTF", "this kernel has none (CONFIG_DEBUG_INFO_BTF), hence no types")
    types = kernel_types(btf)
    add_missing_types(types)
    kallsyms = symbols.kallsyms
    addresses = table_symbols(kallsyms.tables, symbols.read) | kallsyms.addresses()
    source = SymbolSource(addresses, slide, banner, symbols.read)
    return Document(
        metadata=_METADATA,
        base_types=types.base_types,
        user_types=types.user_types,
        enums=types.enums,
        symbols=symbol_entries(source, types),
    )


def write_isf(symbols: LiveSymbols, path: Path, *, slide: int, banner: bytes) -> None:
    """This writes all symbols and types of a running kernel as an ISF file.

    A reader of the path sees the whole file or the one before. It is compressed as its name says:
    ``.json``, ``.json.xz``, ``.json.gz`` or ``.json.bz2``.

    Args:
        symbols: of the kernel.
        path: of the file.
        slide: the distance that KASLR moved the kernel, in bytes.
        banner: its ``linux_banner``, without the newline and NUL.

    Raises:
        UsageError: the path cannot be written; says why.
        CorruptTable: the kernel has no BTF, or its tables contradict themselves.
        MemoryFault: a table cannot be read.
    """
    document = isf_document(symbols, slide=slide, banner=banner)
    write_whole(path, compress(msgspec.json.encode(document), path.name))
