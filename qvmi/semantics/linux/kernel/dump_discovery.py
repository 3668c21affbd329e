"""Understanding a Linux kernel that stands in a file, without a register to begin with.

The order is by cost: what the file's head says of the kernel, page tables in the first MiB, what the
kernel says of itself somewhere in memory, and then whatever looks like its page tables. Each is believed
only once a kernel was understood by it.

An aarch64 kernel is found by its note alone, which anybody in the guest can write: the one that came with
the memory is believed before those in it, and of these only one that is alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from qvmi.addr import Pa, PaRange, Va
from qvmi.arch.paging import extents
from qvmi.errors import UnknownGuest
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.ranges import joined
from qvmi.semantics.linux.image.aarch64_image import aarch64_images_by_notes
from qvmi.semantics.linux.image.image_in_memory import (
    REAL_MODE_END,
    images_by_form,
    images_by_notes,
)
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.image.kernel_map import direct_map_base
from qvmi.semantics.linux.image.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo
from qvmi.semantics.linux.kernel.discovery import Kernel, understand
from qvmi.symbols.layout import Symbols
from qvmi.symbols.profile import ProfileCache

__all__ = ["discover_in_dump", "ram_that_the_kernel_maps"]

_MAX_IMAGES: Final = 16
"""Images that are tried, each at some 100 ms; the first is nearly always right."""
_MAX_PROBLEMS: Final = 4
"""Failed tries that are told of, a few lines each."""
_ADDRESSES: Final = 1 << 64
_BEYOND: Final = 1 << 32
"""How far behind the last byte that we know of the map is looked at: by the hole below 4 GiB."""


def discover_in_dump(
    memory: PhysicalMemory,
    *,
    vmcoreinfo: Sequence[bytes] = (),
    cache: ProfileCache | None = None,
    symbols: Callable[[KernelImage, AddressSpace], Symbols] | None = None,
) -> Kernel:
    """This works out which kernel ran, and how to read it.

    Args:
        memory: of the guest.
        vmcoreinfo: texts of the kernel's notes that came with it.
        cache: profiles of kernels seen before; None to start from nothing.
        symbols: makes the symbols from a file of the user's.

    Raises:
        UnknownGuest: there is no kernel that this room understands; says what was seen.
    """
    problems: list[str] = []
    for image in islice(_images(memory, vmcoreinfo), _MAX_IMAGES):
        try:
            return understand(image, memory, cache=cache, symbols=symbols)
        except UnknownGuest as unknown:
            if len(problems) < _MAX_PROBLEMS:
                problems += [unknown.reason, *unknown.evidence]
    raise UnknownGuest(
        "no Linux kernel found in this memory: neither VMCOREINFO nor any page leads to one",
        problems
        or [
            "no page looks like the page tables of an x86-64 kernel, no note is of an aarch64 kernel"
        ],
    )


def _images(memory: PhysicalMemory, vmcoreinfo: Iterable[bytes]) -> Iterator[KernelImage]:
    """This iterates the images, each once."""
    notes = [parse_vmcoreinfo(text) for text in vmcoreinfo]
    seen: set[tuple[Va, Pa, str]] = set()
    ways = (
        images_by_notes(memory, notes),
        aarch64_images_by_notes(memory, notes),
        images_by_form(memory, REAL_MODE_END),
        images_by_notes(memory, find_vmcoreinfo(memory)),
        _the_only_one(aarch64_images_by_notes(memory, find_vmcoreinfo(memory))),
        images_by_form(memory, memory.ranges[-1].end),
    )
    for image in chain.from_iterable(ways):
        place = image.start, image.pa, image.geometry.name
        if place not in seen:
            seen.add(place)
            yield image


def _the_only_one(images: Iterable[KernelImage]) -> Iterator[KernelImage]:
    """This iterates an image that there are no others beside; no register tells which of several ran.

    Raises:
        UnknownGuest: there are several.
    """
    found = list(islice(images, 2))
    if len(found) > 1:
        raise UnknownGuest(
            "several aarch64 kernels are described by notes for crash dumps (VMCOREINFO) in this memory,"
            " and nothing tells which of them ran; the head of an ELF core from `qvmi dump` does",
            [f"{item.claim} ({item.source})" for image in found for item in image.evidence],
        )
    yield from found


def ram_that_the_kernel_maps(kernel: Kernel) -> tuple[PaRange, ...]:
    """These are the physical addresses of the kernel's direct map, which is of RAM and nothing else.

    Returns:
        None at all where the kernel does not tell where that map is.

    Raises:
        MemoryFault: the map takes more page tables than is read of anything.
    """
    space, image = kernel.space, kernel.image
    found = direct_map_base(image, image.space(space.memory), kernel.symbols)
    if found is None:
        return ()
    base, _ = found
    # On aarch64 physical address 0, where there is no RAM, may be in the map below all addresses there are.
    start = max(base, space.geometry.spans[-1][0])
    end = min((base + space.memory.ranges[-1].end) % _ADDRESSES + _BEYOND, image.start)
    runs = extents(space.memory.read, space.root, space.geometry, Va(start), Va(end))
    mapped = (run for run in runs if (run.va - base) % _ADDRESSES == run.pa)
    return joined(PaRange(run.pa, Pa(run.pa + run.size)) for run in mapped)
