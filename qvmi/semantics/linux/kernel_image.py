"""Finding the kernel's image and page tables from the registers of any vCPU.

References: Linux Documentation/arch/x86/x86_64/mm.rst (the image lies in the 1 GiB behind
0xffffffff80000000), arch/x86/include/asm/pgtable.h (``kernel_to_user_pgdp``: with page-table
isolation the user half of the top level lies 4 KiB above the kernel half); Intel SDM volume 3A,
6.14.1 (64-bit IDT gates).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL, X86_64_5_LEVEL, Extent, Geometry, extents
from qvmi.arch.x86_64 import Registers
from qvmi.errors import MemoryFault, UnknownGuest
from qvmi.memory.address_space import AddressSpace, LinearRange
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence

__all__ = ["IMAGE_MAP_START", "KernelImage", "find_kernel_image"]

IMAGE_MAP_START: Final = Va(0xFFFF_FFFF_8000_0000)
"""``__START_KERNEL_map``: where the image would be mapped if it were loaded at address 0."""
IMAGE_MAP_END: Final = Va(0xFFFF_FFFF_C000_0000)
_IMAGE_ALIGNMENT: Final = 2 << 20
"""``CONFIG_PHYSICAL_ALIGN``: KASLR moves the image by multiples of it."""
_MIN_IMAGE_SIZE: Final = 4 << 20
_MAX_IMAGE_SIZE: Final = 512 << 20
"""``KERNEL_IMAGE_SIZE`` without KASLR; the image and its copies are bounded by it."""
_USER_HALF: Final = 1 << 12
_GATE: Final = Struct("<HHHHII")
_CR0_PG: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class KernelImage:
    """This is where a kernel lies and the page tables that map it.

    Args:
        start: first virtual address, ``_text``.
        end: first virtual address behind what is mapped of it.
        pa: physical address of ``start``.
        root: the kernel's top-level page table.
        geometry: how it translates.
        page_table_isolation: whether the vCPU ran on the user half of a pair of page tables, or
            the user half beside ``root`` maps less than it.
        extents: the mapped parts of the image, by address.
        evidence: why this is believed.
    """

    start: Va
    end: Va
    pa: Pa
    root: Pa
    geometry: Geometry
    page_table_isolation: bool
    extents: tuple[Extent, ...]
    evidence: tuple[Evidence, ...]

    @property
    def linear(self) -> LinearRange:
        """This is the image as one linear run."""
        return LinearRange(self.start, self.end, self.pa)

    def space(self, memory: PhysicalMemory) -> AddressSpace:
        """This is the kernel's address space with the image as its only shortcut."""
        return AddressSpace(memory, self.root, geometry=self.geometry, linear=[self.linear])

    def runs(self, *, writable: bool, executable: bool) -> Iterator[Extent]:
        """This iterates the parts of the image with these rights, neighbours joined."""
        for extent in self.extents:
            rights = extent.permissions
            if rights.writable == writable and rights.executable == executable:
                yield extent


def find_kernel_image(vcpus: Sequence[Registers], memory: PhysicalMemory) -> KernelImage:
    """This finds the kernel that the vCPUs run.

    Raises:
        UnknownGuest: no vCPU's page tables map a kernel image; the evidence says what each did.
    """
    misses: list[str] = []
    for registers in vcpus:
        problem = _why_no_paging(registers)
        if problem:
            misses.append(f"vCPU {registers.index}: {problem}")
            continue
        image = _image_of(registers, memory)
        if image is not None:
            return image
        misses.append(
            f"vCPU {registers.index}: CR3 {registers.cr3:#x} maps no kernel image"
            f" between {IMAGE_MAP_START:#x} and {IMAGE_MAP_END:#x}"
        )
    raise UnknownGuest(
        "no Linux kernel found: the guest may still be in its firmware or boot loader,"
        " or run another system",
        misses,
    )


def _why_no_paging(registers: Registers) -> str:
    """This says why a vCPU's page tables cannot be a 64-bit kernel's; empty if they can."""
    if registers.smm:
        return "in system management mode"
    if not registers.cr0 & _CR0_PG:
        return f"paging is off (CR0 {registers.cr0:#x}, RIP {registers.rip:#x})"
    if not registers.long_mode:
        return f"not in long mode (EFER {registers.efer:#x})"
    return ""


@dataclass(frozen=True, slots=True)
class _Half:
    """This is one half of a PTI pair, or the only page table, and what it maps of the image."""

    root: Pa
    extents: tuple[Extent, ...]

    @property
    def mapped(self) -> int:
        return sum(extent.size for extent in self.extents)


def _image_of(registers: Registers, memory: PhysicalMemory) -> KernelImage | None:
    """This finds the image that one vCPU's page tables map; the half that maps more wins."""
    geometry = X86_64_5_LEVEL if registers.la57 else X86_64_4_LEVEL
    current = registers.cr3 & geometry.root_mask
    halves = [
        _Half(
            Pa(root),
            tuple(extents(memory.read, Pa(root), geometry, IMAGE_MAP_START, IMAGE_MAP_END)),
        )
        for root in (current & ~_USER_HALF, current | _USER_HALF)
    ]
    kernel_half, user_half = halves
    best = max(halves, key=lambda half: half.mapped)
    if current & _USER_HALF and user_half.mapped == kernel_half.mapped:
        best = user_half  # no pair at all: the page table happens to lie on an odd page
    parts = _image_parts(best.extents)
    if not parts:
        return None
    start, end, pa = parts[0].va, Va(parts[-1].va + parts[-1].size), parts[0].pa
    isolated = best is kernel_half and 0 < user_half.mapped < kernel_half.mapped
    gate = _gate_handler(registers, best.root, geometry, memory)
    evidence = [
        Evidence(
            f"kernel image at {start:#x}, physical {pa:#x}, {(end - start) >> 10} KiB",
            f"page tables at {best.root:#x} (CR3 of vCPU {registers.index}, {geometry.name})",
        )
    ]
    if gate is not None and start <= gate < end:
        evidence.append(Evidence(f"exception handlers in the image at {gate:#x}", "IDT gate 0"))
    return KernelImage(
        start, end, pa, best.root, geometry, isolated, parts, tuple(evidence)
    )


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
            if part.va - part.pa == distance and 0 <= part.va - first.va < _MAX_IMAGE_SIZE
        )
        if parts[-1].va + parts[-1].size - first.va >= _MIN_IMAGE_SIZE:
            return parts
    return ()


def _gate_handler(
    registers: Registers, root: Pa, geometry: Geometry, memory: PhysicalMemory
) -> Va | None:
    """This is the handler of exception 0, None where the IDT cannot be read."""
    try:
        gate = AddressSpace(memory, root, geometry=geometry).read(registers.idt_base, _GATE.size)
    except MemoryFault:
        return None
    low, _, _, middle, high, _ = _GATE.unpack(gate)
    return Va(low | middle << 16 | high << 32)
