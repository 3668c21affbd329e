"""Which Windows kernel runs: found from the registers of any vCPU, without any symbol.

References: Intel SDM volume 3A, 6.14.1 (64-bit IDT gates); Windows Internals, 7th edition, part 1, chapter 2
(the handlers of exceptions lie in ntoskrnl.exe); Microsoft, ntddk.h (``KUSER_SHARED_DATA``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch import x86_64
from qvmi.arch.paging import X86_64_4_LEVEL, X86_64_5_LEVEL
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence
from qvmi.semantics.linux.image.kernel_image import gate_handler
from qvmi.semantics.windows.pe_image import PdbIdentity, PeImage, image_at
from qvmi.view import View

__all__ = ["SharedData", "WindowsKernel", "find_windows"]

_KERNEL_PDBS: Final = frozenset({"ntkrnlmp.pdb", "ntoskrnl.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb"})
_UPPER_HALF: Final = 1 << 63
_MAX_IMAGE: Final = 32 << 20
"""How far before a handler the image may begin: ntoskrnl.exe has 9 to 20 MiB."""
_MAX_ROOTS: Final = 4
"""Page tables looked at: each takes some 10 ms, and vCPUs of one system all map the kernel."""
_SHARED_DATA: Final = Va(0xFFFF_F780_0000_0000)
"""``KI_USER_SHARED_DATA``, at the same place in every 64-bit Windows."""
_CLOCKS: Final = Struct("<8xQ4xQ")
"""``InterruptTime`` and ``SystemTime``, each with the upper half once more behind it."""
_VERSION: Final = Struct("<I8xII")
"""``NtBuildNumber`` (0 before Windows 10), then behind others ``NtMajorVersion`` and ``NtMinorVersion``."""
_VERSION_AT: Final = 0x260
_MAJOR_VERSIONS: Final = range(5, 11)
"""From Windows XP x64 (5.2) to Windows 11, which says 10.0 too."""
_TICKS: Final = 10_000_000
"""Of 100 ns in a second."""


@dataclass(frozen=True, slots=True)
class SharedData:
    """This is what every process of a Windows is told by the kernel.

    Args:
        version: such as ``10.0.19045``.
        uptime_s: seconds since boot.
        time_s: seconds since 1601, in UTC.
    """

    version: str
    uptime_s: float
    time_s: float


@dataclass(frozen=True, slots=True)
class WindowsKernel:
    """This is a Windows kernel.

    Args:
        space: its address space.
        image: where it lies.
        pdb: which symbols are its own.
        evidence: why this is believed.
    """

    space: AddressSpace
    image: PeImage
    pdb: PdbIdentity
    evidence: tuple[Evidence, ...]

    def still_there(self) -> bool:
        """This tells whether the same kernel lies where it was found."""
        found = image_at(self.space, self.image.base)
        return found is not None and found.pdb == self.pdb

    def shared_data(self) -> SharedData | None:
        """This is what the kernel tells all processes, None where it cannot be read."""
        return _shared_data(self.space)


def find_windows(view: View) -> WindowsKernel | None:
    """This finds the Windows kernel that the vCPUs run.

    Where user mode runs on page tables of its own, those of a vCPU that runs a program map too little:
    a look at other registers, a moment later, finds it.

    Returns:
        None where none of them runs one.
    """
    vcpus = [one for one in view.vcpus if isinstance(one, x86_64.Registers)]
    usable = [one for one in vcpus if one.paging and one.long_mode and not one.smm]
    for registers in _of_different_roots(usable)[:_MAX_ROOTS]:
        found = _kernel_of(registers, view.memory)
        if found is not None:
            return found
    return None


def _shared_data(space: AddressSpace) -> SharedData | None:
    try:
        uptime, now = _CLOCKS.unpack(space.read(_SHARED_DATA, _CLOCKS.size))
        held = space.read(Va(_SHARED_DATA + _VERSION_AT), _VERSION.size)
    except MemoryFault:
        return None
    build, major, minor = _VERSION.unpack(held)
    if major not in _MAJOR_VERSIONS:
        return None
    version = f"{major}.{minor}.{build}" if build else f"{major}.{minor}"
    return SharedData(version, uptime / _TICKS, now / _TICKS)


def _of_different_roots(vcpus: Sequence[x86_64.Registers]) -> list[x86_64.Registers]:
    return list({one.cr3: one for one in vcpus}.values())


def _kernel_of(registers: x86_64.Registers, memory: PhysicalMemory) -> WindowsKernel | None:
    """This looks backwards from the handler of exception 0 for the image that it lies in."""
    geometry = X86_64_5_LEVEL if registers.la57 else X86_64_4_LEVEL
    root = Pa(registers.cr3 & geometry.root_mask)
    space = AddressSpace(memory, root, geometry=geometry)
    shared = _shared_data(space)  # a look at one page, before one at thousands
    gate = None if registers.idt_base is None else gate_handler(space, registers.idt_base)
    if shared is None or gate is None or gate < _UPPER_HALF:
        return None
    page = gate & ~(PAGE_SIZE - 1)
    for base in range(page, max(page - _MAX_IMAGE, _UPPER_HALF), -PAGE_SIZE):
        image = image_at(space, Va(base))
        if image is not None and image.pdb is not None and gate < base + image.size:
            if image.pdb.name.lower() not in _KERNEL_PDBS:
                return None
            told = Evidence(f"Windows {shared.version}", f"KUSER_SHARED_DATA at {_SHARED_DATA:#x}")
            evidence = (told, *_evidence(registers, image, gate, root))
            return WindowsKernel(space, image, image.pdb, evidence)
    return None


def _evidence(
    registers: x86_64.Registers, image: PeImage, gate: Va, root: Pa
) -> tuple[Evidence, ...]:
    tables = f"page tables at {root:#x} (CR3 of vCPU {registers.index})"
    return (
        Evidence(f"exception handlers at {gate:#x}", f"IDT gate 0, by {tables}"),
        Evidence(f"kernel image at {image.base:#x}, {image.size >> 10} KiB", "its PE header"),
        Evidence(f"symbols {image.pdb}", "its debug directory"),
    )
