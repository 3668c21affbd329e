"""Where the kernel's image and page tables are; on x86-64, found from the registers of any vCPU.

References: Linux Documentation/arch/x86/x86_64/mm.rst (the image lies in the 1 GiB behind
0xffffffff80000000), arch/x86/include/asm/pgtable.h (``kernel_to_user_pgdp``: with page-table
isolation the user half of the top level lies 4 KiB above the kernel half); Intel SDM volume 3A,
6.14.1 (64-bit IDT gates).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL, X86_64_5_LEVEL, Extent, Geometry, extents
from qvmi.arch.x86_64 import Registers
from qvmi.errors import MemoryFault, UnknownGuest
from qvmi.memory.address_space import AddressSpace, LinearRange
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence
from qvmi.symbols.profile import KnownBuild

__all__ = [
    "IMAGE_MAP_START",
    "KernelImage",
    "find_kernel_image",
    "find_known_image",
    "gate_handler",
    "image_by_tables",
]

IMAGE_MAP_START: Final = Va(0xFFFF_FFFF_8000_0000)
"""``__START_KERNEL_map``: where the image would be mapped if it were loaded at address 0."""
IMAGE_MAP_END: Final = Va(0xFFFF_FFFF_C000_0000)
_IMAGE_ALIGNMENT: Final = 2 << 20
"""``CONFIG_PHYSICAL_ALIGN``: KASLR moves the image by multiples of it."""
_MIN_IMAGE_SIZE: Final = 4 << 20
_MAX_IMAGE_SIZE: Final = 512 << 20
"""``KERNEL_IMAGE_SIZE`` without KASLR; the image and its copies are bounded by it."""
_MAX_EXTENTS: Final = 1024
"""A kernel's image is mapped in about ten runs; page tables with more of them are no kernel's."""
_MAX_ROOTS: Final = 64
"""Page tables looked at: vCPUs share them, or run processes that all map the kernel."""
_MAX_GATES: Final = 4
"""vCPUs whose gates are tried for each build seen before: one that runs the kernel is enough."""
_USER_HALF: Final = 1 << 12
_GATE: Final = Struct("<HHHHII")


@dataclass(frozen=True, slots=True)
class KernelImage:
    """This is where a kernel lies and the page tables that map it.

    Args:
        start: first virtual address, ``_text``.
        end: first virtual address behind what is mapped of it.
        pa: physical address of ``start``.
        root: the kernel's top-level page table.
        geometry: how it translates.
        page_table_isolation: whether user mode runs on page tables of its own, which map little
            of the kernel.
        extents: the mapped parts of the image, by address; none where it was found by a gate, which
            leaves them to :meth:`runs` to look up.
        evidence: why this is believed.
        gate: the handler of exception 0, or aarch64's table of vectors, if it lies in the image.
        architecture: of the vCPUs, such as ``x86_64``.
    """

    start: Va
    end: Va
    pa: Pa
    root: Pa
    geometry: Geometry
    page_table_isolation: bool
    extents: tuple[Extent, ...]
    evidence: tuple[Evidence, ...]
    gate: Va | None = None
    architecture: str = "x86_64"

    @property
    def linear(self) -> LinearRange:
        """This is the image as one linear run."""
        return LinearRange(self.start, self.end, self.pa)

    def space(self, memory: PhysicalMemory) -> AddressSpace:
        """This is the kernel's address space with the image as its only shortcut."""
        return AddressSpace(memory, self.root, geometry=self.geometry, linear=[self.linear])

    def runs(self, memory: PhysicalMemory, *, writable: bool, executable: bool) -> Iterator[Extent]:
        """This iterates the parts of the image with these rights, neighbours joined."""
        for extent in self.extents or _Mapped.by(self.root, self.geometry, memory).parts:
            rights = extent.permissions
            if rights.writable == writable and rights.executable == executable:
                yield extent


def find_kernel_image(vcpus: Sequence[Registers], memory: PhysicalMemory) -> KernelImage:
    """This finds the kernel that the vCPUs run.

    Raises:
        UnknownGuest: no vCPU's page tables map a kernel image; the evidence says what each did.
    """
    misses: list[str] = []
    tried: set[int] = set()
    for registers in vcpus:
        problem = _why_no_paging(registers)
        if not problem and registers.cr3 not in tried and len(tried) < _MAX_ROOTS:
            tried.add(registers.cr3)
            image = _image_of(registers, memory)
            if image is not None:
                return image
        misses.append(f"vCPU {registers.index}: {problem or _why_no_image(registers)}")
    raise UnknownGuest(
        "no Linux kernel found: the guest may still be in its firmware or boot loader,"
        " or run another system",
        misses,
    )


def find_known_image(
    vcpus: Sequence[Registers], memory: PhysicalMemory, build: KnownBuild
) -> KernelImage | None:
    """This finds the image of a build seen before from one gate, with a handful of walks.

    That its first and last page and the handler are mapped as parts of one run is made sure of;
    that the kernel is of this build, its banner has to say.

    Returns:
        None where the gate does not lead there, as early in boot; the image may be found still.
    """
    usable = (registers for registers in vcpus if not _why_no_paging(registers))
    images = (_known_image_of(one, memory, build) for one in islice(usable, _MAX_GATES))
    return next((image for image in images if image is not None), None)


def _why_no_paging(registers: Registers) -> str:
    """This says why a vCPU's page tables cannot be a 64-bit kernel's; empty if they can."""
    if registers.smm:
        return "in system management mode"
    if not registers.paging:
        return f"paging is off (CR0 {registers.cr0:#x}, RIP {registers.rip:#x})"
    if not registers.long_mode:
        return f"not in long mode (EFER {registers.efer:#x})"
    return ""


def _why_no_image(registers: Registers) -> str:
    return (
        f"CR3 {registers.cr3:#x} maps no kernel image"
        f" between {IMAGE_MAP_START:#x} and {IMAGE_MAP_END:#x}"
    )


@dataclass(frozen=True, slots=True)
class _Mapped:
    """This is what one top-level page table maps where an image would be.

    Args:
        root: of the page table.
        runs: all of it.
        parts: those runs that make up an image; none where there is no image.
    """

    root: Pa
    runs: tuple[Extent, ...]
    parts: tuple[Extent, ...]

    @classmethod
    def by(cls, root: int, geometry: Geometry, memory: PhysicalMemory) -> "_Mapped":
        """This looks a page table up."""
        found = extents(memory.read, Pa(root), geometry, IMAGE_MAP_START, IMAGE_MAP_END)
        runs = tuple(islice(found, _MAX_EXTENTS))
        return cls(Pa(root), runs, _image_parts(runs) if len(runs) < _MAX_EXTENTS else ())

    @property
    def has_data(self) -> bool:
        """This tells whether it maps an image with writable parts, as a kernel's own table does."""
        return any(part.permissions.writable for part in self.parts)

    def is_user_half_of(self, kernel: "_Mapped") -> bool:
        """This tells whether it maps some of a kernel's image, but none of its writable parts."""
        start, distance = kernel.parts[0].va, kernel.parts[0].va - kernel.parts[0].pa
        shared = [run for run in self.runs if run.va >= start and run.va - run.pa == distance]
        return bool(shared) and not any(run.permissions.writable for run in shared)


def _image_of(registers: Registers, memory: PhysicalMemory) -> KernelImage | None:
    """This finds the image that one vCPU's page tables map.

    The page table in CR3 is the truth. The one beside it is believed only where CR3 can be the
    user half of a pair: else it may be any page, even one that a program in the guest has filled.
    """
    geometry = X86_64_5_LEVEL if registers.la57 else X86_64_4_LEVEL
    current = registers.cr3 & geometry.root_mask
    kernel = _Mapped.by(current, geometry, memory)
    beside = _Mapped.by(current ^ _USER_HALF, geometry, memory)
    if current & _USER_HALF and not kernel.has_data:
        kernel, beside = beside, kernel
    if not kernel.has_data:
        return None
    start, pa, last = kernel.parts[0].va, kernel.parts[0].pa, kernel.parts[-1]
    end = Va(last.va + last.size)
    source = f"page tables at {kernel.root:#x} (CR3 of vCPU {registers.index}, {geometry.name})"
    evidence = [
        Evidence(f"kernel image at {start:#x}, physical {pa:#x}, {(end - start) >> 10} KiB", source)
    ]
    gate = _gate_handler(registers, kernel.root, geometry, memory)
    if gate is not None and start <= gate < end:
        evidence.append(Evidence(f"exception handlers in the image at {gate:#x}", "IDT gate 0"))
    else:
        gate = None
    isolated = bool(beside.root & _USER_HALF) and beside.is_user_half_of(kernel)
    return KernelImage(
        start, end, pa, kernel.root, geometry, isolated, kernel.parts, tuple(evidence), gate
    )


def image_by_tables(
    root: Pa, geometry: Geometry, memory: PhysicalMemory, *, source: str
) -> KernelImage | None:
    """This finds the image that page tables map which no register tells of.

    Args:
        root: the top-level page table, the kernel's half if there are two.
        geometry: how it translates.
        memory: of the guest.
        source: why these page tables are looked at.

    Returns:
        None where they map no image.
    """
    kernel = _Mapped.by(root, geometry, memory)
    if not kernel.has_data:
        return None
    beside = _Mapped.by(root ^ _USER_HALF, geometry, memory)
    first, last = kernel.parts[0], kernel.parts[-1]
    end = Va(last.va + last.size)
    size = (end - first.va) >> 10
    claim = f"kernel image at {first.va:#x}, physical {first.pa:#x}, {size} KiB"
    evidence = Evidence(claim, f"page tables at {root:#x} ({source}, {geometry.name})")
    isolated = bool(beside.root & _USER_HALF) and beside.is_user_half_of(kernel)
    return KernelImage(first.va, end, first.pa, root, geometry, isolated, kernel.parts, (evidence,))


def _known_image_of(
    registers: Registers, memory: PhysicalMemory, build: KnownBuild
) -> KernelImage | None:
    """This is :func:`_image_of` for a build seen before: by a gate, with the same mistrust."""
    geometry = X86_64_5_LEVEL if registers.la57 else X86_64_4_LEVEL
    current = registers.cr3 & geometry.root_mask
    for root in (current, current ^ _USER_HALF) if current & _USER_HALF else (current,):
        space = AddressSpace(memory, Pa(root), geometry=geometry)
        gate = _gate_handler(registers, space.root, geometry, memory)
        run = None if gate is None else _known_run(space, build, gate)
        if gate is None or run is None:
            continue
        beside = AddressSpace(memory, Pa(root ^ _USER_HALF), geometry=geometry)
        isolated = bool(beside.root & _USER_HALF) and _is_user_half(beside, run, gate)
        tables = f"page tables at {root:#x} (CR3 of vCPU {registers.index}, {geometry.name})"
        place = f"{run.start:#x}, physical {run.pa:#x}, {build.image_size >> 10} KiB"
        evidence = (
            Evidence(f"exception handlers in the image at {gate:#x}", "IDT gate 0"),
            Evidence(f"kernel image at {place}", f"that gate, by a profile; both ends by {tables}"),
        )
        return KernelImage(
            run.start, run.end, run.pa, space.root, geometry, isolated, (), evidence, gate
        )
    return None


def _known_run(space: AddressSpace, build: KnownBuild, gate: Va) -> LinearRange | None:
    """This is where an image lies if its code, its data and the handler are mapped as one run."""
    start, size = build.start(gate), build.image_size
    end = Va(start + size)
    if start % _IMAGE_ALIGNMENT or not IMAGE_MAP_START <= start < gate < end <= IMAGE_MAP_END:
        return None
    try:
        first, last, handler = (space.walk(Va(va)) for va in (start, end - 1, gate))
    except MemoryFault:
        return None
    is_run = last.pa - first.pa == size - 1 and handler.pa - first.pa == gate - start
    is_image = first.permissions.executable and last.permissions.writable
    return LinearRange(start, end, first.pa) if is_run and is_image else None


def _is_user_half(space: AddressSpace, image: LinearRange, gate: Va) -> bool:
    """This tells whether page tables map an image's exception handlers, but not its data."""
    try:
        if space.translate(gate) != image.pa + gate - image.start:
            return False
        space.translate(Va(image.end - 1))
    except MemoryFault as fault:
        return fault.address != gate
    return False


def _image_parts(found: Sequence[Extent]) -> tuple[Extent, ...]:
    """This keeps those extents that are parts of one image: all moved by the same distance.

    Without page-table isolation the image is one run; with it the gaps between its sections are
    not mapped.
    """
    for first in found:
        if first.va % _IMAGE_ALIGNMENT or not first.permissions.executable:
            continue
        distance = first.va - first.pa
        parts = tuple(
            part
            for part in found
            if part.va - part.pa == distance
            and first.va <= part.va < part.va + part.size <= first.va + _MAX_IMAGE_SIZE
        )
        if parts and parts[-1].va + parts[-1].size - first.va >= _MIN_IMAGE_SIZE:
            return parts
    return ()


def _gate_handler(
    registers: Registers, root: Pa, geometry: Geometry, memory: PhysicalMemory
) -> Va | None:
    """This is the handler of exception 0, None where the IDT cannot be read, or is not known."""
    if registers.idt_base is None:
        return None
    return gate_handler(AddressSpace(memory, root, geometry=geometry), Va(registers.idt_base))


def gate_handler(space: AddressSpace, idt: Va) -> Va | None:
    """This is the handler of exception 0 in an interrupt table, None where that cannot be read."""
    try:
        gate = space.read(idt, _GATE.size)
    except MemoryFault:
        return None
    low, _, _, middle, high, _ = _GATE.unpack(gate)
    return Va(low | middle << 16 | high << 32)
