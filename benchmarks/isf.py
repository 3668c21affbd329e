"""From QEMU's socket to a complete ISF file on disk: all symbols and types of a running kernel.

``python benchmarks/isf.py [--quick]``. No peer makes an ISF without debug information in such a time (the
next one takes 11 s); what stands beside each figure is the floor: encoding, compressing and writing the
same document with nothing read or understood. That the content is right is drgn's word, which takes it
from the kernel's debug information.
"""

import asyncio
import lzma
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn
import msgspec
import peer_drgn
from looks import KERNEL, make_lab, vmlinux
from race import Disagreement, Side, Size, agree, in_turns, run, tell

import qvmi
from qvmi.symbols.isf import write_isf
from qvmi.symbols.live import LiveSymbols
from tests.guests.lab import Guest, GuestConfig

LIMITS_S = {"isf.json": 1.0, "isf.json.xz": 2.0}
XZ_PRESET = 1
STRUCTS = (
    *("cred", "dentry", "file", "files_struct", "inode", "list_head", "mm_struct", "module"),
    *("nsproxy", "page", "pid", "signal_struct", "sock", "socket", "super_block", "task_struct"),
    *("timekeeper", "uts_namespace", "vm_area_struct"),
)
SYMBOLS_LOOKED_UP = 500
KERNEL_HALF = 1 << 63


def whole(runner: asyncio.Runner, guest: Guest, file: Path) -> Side:
    """This attaches as if for the first time, and writes the file."""

    async def write() -> float:
        began = time.perf_counter()
        async with qvmi.attach(guest.qmp, use_cache=False) as machine:
            kernel = machine.guest.kernel
            if not isinstance(kernel.symbols, LiveSymbols):
                raise Disagreement("the symbols are not the kernel's own")
            write_isf(kernel.symbols, file, slide=kernel.slide, banner=kernel.banner)
            return time.perf_counter() - began

    return lambda: runner.run(write())


def floor(document: object, file: Path) -> Side:
    """This encodes, compresses and writes what is known already."""

    def side() -> float:
        began = time.perf_counter()
        data = msgspec.json.encode(document)
        packed = file.suffix == ".xz"
        file.write_bytes(lzma.compress(data, preset=XZ_PRESET) if packed else data)
        return time.perf_counter() - began

    return side


def check(document: dict[str, Any], program: drgn.Program, slide: int) -> None:
    """This compares structs member by member, and addresses of symbols."""
    types, symbols = document["user_types"], document["symbols"]
    ours = [row for name in STRUCTS for row in isf_members(name, types[name])]
    theirs = [row for name in STRUCTS for row in drgn_members(program.type(f"struct {name}"))]
    agree("members of structs", ours, theirs)
    found = program.symbols()
    times = Counter(symbol.name for symbol in found)
    single = [one for one in found if times[one.name] == 1 and one.name in symbols]
    looked_up = single[:: max(1, len(single) // SYMBOLS_LOOKED_UP)]
    moved = {one.name: symbols[one.name]["address"] for one in looked_up}
    # What is per CPU has an offset for an address, which KASLR does not move.
    addresses = [(name, at + slide if at >= KERNEL_HALF else at) for name, at in moved.items()]
    agree("addresses of symbols", addresses, [(one.name, one.address) for one in looked_up])


def isf_members(name: str, found: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """These are (struct, member, offset in bits), with the size as that of an empty name."""
    yield name, "", 8 * found["size"]
    for member, place in found["fields"].items():
        if not place.get("anonymous", False):
            yield name, member, 8 * place["offset"] + place["type"].get("bit_position", 0)


def drgn_members(found: drgn.Type) -> Iterator[tuple[str, str, int]]:
    """These are the same by the debug information."""
    yield found.tag or "", "", 8 * (found.size or 0)
    for member in found.members or ():
        if member.name:
            yield found.tag or "", member.name, member.bit_offset


def main(size: Size) -> None:
    """This writes the files of one thawed guest."""
    lab = make_lab()
    debug_information = vmlinux(lab)
    with (
        lab.restore(GuestConfig(kernel=KERNEL)) as guest,
        asyncio.Runner() as runner,
        tempfile.TemporaryDirectory(prefix="qvmi-") as folder,
    ):
        for name, limit_s in LIMITS_S.items():
            file = Path(folder) / name
            writing = whole(runner, guest, file)
            writing()
            data = file.read_bytes()
            packed = file.suffix == ".xz"
            document = msgspec.json.decode(lzma.decompress(data) if packed else data)
            with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
                slide = machine.guest.kernel.slide
            check(document, peer_drgn.attached(guest.ram_paths[0], debug_information), slide)
            bare = floor(document, file.with_stem("floor"))
            ours, theirs = in_turns(size.of(full=10, quick=1), writing, bare)
            what = f"complete {name}, {len(data) >> 10} KiB, from attach to disk"
            tell(what, ours, limit_s=limit_s, peer="floor", theirs=theirs)


if __name__ == "__main__":
    run(main)
