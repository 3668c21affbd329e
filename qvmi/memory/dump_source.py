"""Which kind of dump a file is, and the ways to open the memory in it.

References: the magics in QEMU ``include/sysemu/dump.h`` (``KDUMP_SIGNATURE``, ``MAKEDUMPFILE_SIGNATURE``),
``migration/savevm.h`` and ``block/qcow2.h``; libvirt ``src/qemu/qemu_saveimage.h``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.memory.core_segments import ELF_MAGIC, core_contents
from qvmi.memory.dump_contents import DumpContents
from qvmi.memory.input_file import InputFile
from qvmi.memory.lime import AVML_MAGIC, LIME_MAGIC, compressed_chunks, lime_contents
from qvmi.memory.mapped_ram import MappedRam
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.raw_ram import raw_contents
from qvmi.memory.snappy_ram import SnappyRam
from qvmi.memory.snappy_stream import ChunkIndex

__all__ = ["DumpWay", "dump_ways"]

_TAKE_ELF: Final = "take it as ELF: `qvmi dump`, or `dump-guest-memory` without -z, -l, -s and -w"
_DECOMPRESS: Final = "compressed: decompress it first"
_REFUSED: Final = (
    (b"KDUMP   ", f"kdump-compressed: {_TAKE_ELF}"),
    (b"makedumpfile\0", f"kdump-compressed, in makedumpfile's flat form: {_TAKE_ELF}"),
    (b"PAGEDU64", f"a Windows crash dump: {_TAKE_ELF}"),
    (b"PAGEDUMP", f"a Windows crash dump: {_TAKE_ELF}"),
    (b"QEVM", f"a saved state of QEMU: restore it, and {_TAKE_ELF}"),
    (b"LibvirtQemudSave", "a saved machine of libvirt: take `virsh dump --memory-only`"),
    (b"LibvirtQemudPart", "a saved machine of libvirt that was not finished"),
    (b"\xd2\xbe\xd2\xbe", "a snapshot of VMware: name the .vmem file beside it"),
    (b"QFI\xfb", f"a disk image: {_TAKE_ELF}"),
    (b"\x1f\x8b\x08", f"gzip-{_DECOMPRESS}"),
    (b"\xfd7zXZ\0", f"xz-{_DECOMPRESS}"),
    (b"\x28\xb5\x2f\xfd", f"zstd-{_DECOMPRESS}"),
    (b"BZh", f"bzip2-{_DECOMPRESS}"),
    (b"PK\x03\x04", f"zip-{_DECOMPRESS}"),
    (b"\x04\x22\x4d\x18", f"lz4-{_DECOMPRESS}"),
)
"""What is often taken for a dump that can be read, by its first bytes, with the way out."""
_LONGEST: Final = max(len(magic) for magic, _ in _REFUSED)
_RAW_HELP: Final = "; if it is raw RAM that begins like that, say so with --raw-ram auto"


@dataclass(frozen=True, slots=True)
class DumpWay:
    """This is one way in which the memory may lie in the file.

    Args:
        form: what kind of file it is then, for people.
        open: opens the memory.
        vmcoreinfo: texts of the kernel's notes for crash dumps in the file's head.
        certain: the file says so itself, or its owner does.
    """

    form: str
    open: Callable[[], PhysicalMemory]
    vmcoreinfo: tuple[bytes, ...] = ()
    certain: bool = True


def dump_ways(
    file: InputFile, *, raw: bool = False, below_4g: int | None = None
) -> Iterator[DumpWay]:
    """This recognises a dump by its first bytes; it iterates one way, or for raw RAM several.

    Args:
        file: the dump.
        raw: it is raw RAM, whatever the guest has written at address 0.
        below_4g: bytes of raw RAM that lie below 4 GiB, where that is known.

    Raises:
        NotADump: it is something else, or damaged.
    """
    magic = file.read(0, min(_LONGEST, file.size))
    if raw or below_4g is not None:
        yield from _raw_ways(file, below_4g)
    elif magic.startswith(ELF_MAGIC):
        yield _mapped(core_contents(file), file)
    elif magic.startswith(LIME_MAGIC):
        yield _mapped(lime_contents(file), file)
    elif magic.startswith(AVML_MAGIC):
        yield _compressed(compressed_chunks(file), file)
    else:
        for beginning, what in _REFUSED:
            if magic.startswith(beginning):
                raise file.refusal(f"is {what}{_RAW_HELP}")
        yield from _raw_ways(file, None)


def _raw_ways(file: InputFile, below_4g: int | None) -> Iterator[DumpWay]:
    for contents in raw_contents(file, below_4g):
        yield _mapped(contents, file, certain=below_4g is not None)


def _mapped(contents: DumpContents, file: InputFile, *, certain: bool = True) -> DumpWay:
    def opened() -> MappedRam:
        memory = MappedRam(contents.pieces)
        memory.description = f"{contents.form}, mapped from {file.path}"
        return memory

    return DumpWay(contents.form, opened, contents.vmcoreinfo, certain)


def _compressed(index: ChunkIndex, file: InputFile) -> DumpWay:
    def opened() -> SnappyRam:
        memory = SnappyRam(file.link, index)
        memory.description = f"AVML, decompressed from {file.path}"
        return memory

    return DumpWay("AVML", opened)
