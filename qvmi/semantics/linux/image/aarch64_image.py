"""Where an aarch64 guest's kernel and page tables are, by its note for crash dumps or by registers.

QEMU's monitor does not tell where an aarch64 vCPU's page tables are. The note tells, and RAM can be
searched for it without stopping the guest. Anybody in the guest can write such a note: it is believed
where the page tables it names map the kernel as it says, and what the vCPUs run with it.

References: Linux arch/arm64/kernel/vmcore_info.c and kernel/vmcore_info.c, arch/arm64/kernel/vmlinux.lds.S,
arch/arm64/include/asm/memory.h (``kimage_voffset``), arch/arm64/kernel/entry.S (``vectors``),
Documentation/arch/arm64/memory.rst.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch.aarch64 import Registers
from qvmi.arch.paging import Extent, Geometry, Half, aarch64_geometry, extents, walk
from qvmi.errors import MemoryFault, TranslationFault, UnknownGuest
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo, find_vmcoreinfo

__all__ = ["aarch64_images_by_notes", "find_aarch64_image"]

_ADDRESS_BITS: Final = 64
_ADDRESSES: Final = 1 << _ADDRESS_BITS
_BEFORE: Final = 128 << 20
_BEHIND: Final = 256 << 20
"""Bytes around a place in the image within which all of it lies; a distribution's has 40 to 60 MiB."""
_MIN_IMAGE_SIZE: Final = 4 << 20
_MAX_EXTENTS: Final = 4096
"""Runs looked at around the image; besides its own, of which there are about five, those of vmalloc."""
_MAX_HOLE: Final = 32 << 20
"""What the kernel frees of its image after its start, with code and data that only that needs."""
_MAX_KERNELS: Final = 16
"""Kernels that are described; a guest has one, and that of before kexec at most."""
_MAX_CLAIMS: Final = 256
"""Of notes that page tables agree with; to look at one costs some 200 reads of a table."""
_MAX_ROOTS: Final = 64
"""Page tables looked at: all vCPUs share the kernel's."""
_MAX_PAGE_SIZE_DIGITS: Final = 8
_NOT_GLOBAL: Final = 1 << 11
"""Set in the kernel's own pages only if user mode runs without them, as with KPTI."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """This is what somebody says of a kernel.

    Args:
        root: of the page tables of the upper half.
        geometry: how they translate.
        place: an address in the image.
        pa: where that is; None where the claim does not say.
        source: who says so.
    """

    root: Pa
    geometry: Geometry
    place: Va
    pa: Pa | None
    source: str


def find_aarch64_image(vcpus: Sequence[Registers], memory: PhysicalMemory) -> KernelImage:
    """This finds the kernel that the vCPUs run.

    Args:
        vcpus: by their system registers, where these are known.
        memory: of the guest, searched for the note where they are not.

    Raises:
        UnknownGuest: there is none, or there are several and nothing tells which one runs.
    """
    misses: list[str] = []
    for claim in _claims_of_registers(vcpus, misses):
        image = _image_of(claim, memory, vcpus)
        if image is not None and image.gate is not None:
            return image
        misses.append(f"no kernel image around {claim.place:#x} by {claim.source}")
    return _noted_image(vcpus, memory, misses)


def aarch64_images_by_notes(
    memory: PhysicalMemory, notes: Iterable[VmcoreInfo]
) -> Iterator[KernelImage]:
    """This iterates the images that notes describe and page tables bear out, where no vCPU can be asked."""
    tried: set[tuple[Pa, Va]] = set()
    for claim in _claims_of_notes(memory, notes, []):
        if (claim.root, claim.place) in tried:
            continue
        tried.add((claim.root, claim.place))
        image = _image_of(claim, memory, ()) if len(tried) <= _MAX_CLAIMS else None
        if image is not None:
            yield image


def _noted_image(
    vcpus: Sequence[Registers], memory: PhysicalMemory, misses: list[str]
) -> KernelImage:
    """This finds the kernel by its note; one that a vCPU runs is believed before all others.

    Raises:
        UnknownGuest: as :func:`find_aarch64_image`.
    """
    found: dict[Pa, KernelImage] = {}
    tried: set[tuple[Pa, Va]] = set()
    for claim in _claims_of_notes(memory, find_vmcoreinfo(memory), misses):
        # A kernel keeps a copy of its note, which says the same.
        if (claim.root, claim.place) in tried:
            continue
        tried.add((claim.root, claim.place))
        image = _image_of(claim, memory, vcpus) if len(tried) <= _MAX_CLAIMS else None
        if image is None:
            continue
        if _runs(vcpus, image, memory) is not None:
            return image
        found.setdefault(image.root, image)
        if len(found) == _MAX_KERNELS:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    why = f"{len(found)} kernels are described" if found else "no kernel is described"
    misses.append(
        f"{why} by a note for crash dumps (VMCOREINFO) in RAM, as the page tables have it"
    )
    raise UnknownGuest(
        "no Linux kernel found: the guest may still be in its firmware or boot loader, run another"
        " system, or keep no note for crash dumps; name QEMU's gdbstub to be told the page tables",
        misses,
    )


def _claims_of_registers(vcpus: Sequence[Registers], misses: list[str]) -> Iterator[_Claim]:
    """This iterates where the vCPUs' own page tables and exception vectors are."""
    tried: set[Pa] = set()
    for vcpu in vcpus:
        tables = vcpu.upper_tables
        if vcpu.ttbr1_el1 is None or vcpu.vbar_el1 is None:
            continue
        if tables is None or not vcpu.paging:
            misses.append(f"vCPU {vcpu.index}: no address translation in pages of 4 KiB")
            continue
        root, geometry = tables
        if root not in tried and len(tried) < _MAX_ROOTS:
            tried.add(root)
            source = f"page tables at {root:#x} (TTBR1_EL1 of vCPU {vcpu.index}, {geometry.name})"
            yield _Claim(root, geometry, vcpu.vbar_el1, None, source)


def _claims_of_notes(
    memory: PhysicalMemory, notes: Iterable[VmcoreInfo], misses: list[str]
) -> Iterator[_Claim]:
    """This iterates what notes say of kernels, as far as page tables agree with it."""
    for note in notes:
        claim = _claim_of(note)
        if claim is None:
            page_size = note.values.get("PAGESIZE", "")[:_MAX_PAGE_SIZE_DIGITS]
            if len(misses) < _MAX_KERNELS and page_size not in {"", str(PAGE_SIZE)}:
                misses.append(f"a kernel with pages of {page_size} bytes, which is not understood")
        elif _agrees(note, claim, memory):
            yield claim


def _claim_of(note: VmcoreInfo) -> _Claim | None:
    """This is what a note says, None where it is no aarch64 kernel's with pages of 4 KiB."""
    own_tables, stext = note.symbol("swapper_pg_dir"), note.symbol("_stext")
    to_va, unused_bits = note.number("kimage_voffset"), note.number("TCR_EL1_T1SZ")
    if own_tables is None or stext is None or to_va is None or unused_bits is None:
        return None
    if note.values.get("PAGESIZE") != str(PAGE_SIZE):
        return None
    try:
        geometry = aarch64_geometry(_ADDRESS_BITS - unused_bits, Half.UPPER)
    except ValueError:
        return None
    root, pa = (Pa((va - to_va) % _ADDRESSES) for va in (own_tables, stext))
    where = "beside the memory" if note.pa is None else f"at {note.pa:#x}"
    who = f"swapper_pg_dir in VMCOREINFO {where}"
    source = f"page tables at {root:#x} ({who}, {geometry.name})"
    return _Claim(root, geometry, stext, pa, source)


def _agrees(note: VmcoreInfo, claim: _Claim, memory: PhysicalMemory) -> bool:
    """This tells whether page tables map themselves and the kernel's code where a note says."""
    own_tables = note.symbol("swapper_pg_dir")
    try:
        code = walk(memory.read, claim.root, claim.geometry, claim.place)
        tables = walk(memory.read, claim.root, claim.geometry, own_tables or claim.place)
    except MemoryFault:
        return False
    allowed = code.permissions
    return (
        (code.pa, tables.pa) == (claim.pa, claim.root)
        and allowed.executable
        and not allowed.user
        and not tables.permissions.user
    )


def _image_of(
    claim: _Claim, memory: PhysicalMemory, vcpus: Sequence[Registers]
) -> KernelImage | None:
    """This is the image around a place in it: all that is mapped at the same distance."""
    try:
        place = walk(memory.read, claim.root, claim.geometry, claim.place)
        parts = _parts_around(claim, memory, claim.place - place.pa)
    except MemoryFault:
        return None
    if not parts or not _is_image(parts):
        return None
    start, pa = parts[0].va, parts[0].pa
    end = Va(parts[-1].va + parts[-1].size)
    size = f"{(end - start) >> 10} KiB"
    evidence = [Evidence(f"kernel image at {start:#x}, physical {pa:#x}, {size}", claim.source)]
    gate = next((v.vbar_el1 for v in vcpus if v.vbar_el1 and start <= v.vbar_el1 < end), None)
    if gate is not None:
        evidence.append(Evidence(f"exception vectors in the image at {gate:#x}", "VBAR_EL1"))
    image = KernelImage(
        start, end, pa, claim.root, claim.geometry, bool(place.steps[-1].entry & _NOT_GLOBAL),
        parts, tuple(evidence), gate, architecture="aarch64",
    )  # fmt: skip
    return _with_what_runs(image, vcpus, memory) if vcpus and gate is None else image


def _with_what_runs(
    image: KernelImage, vcpus: Sequence[Registers], memory: PhysicalMemory
) -> KernelImage:
    """This adds to the evidence which vCPU runs this kernel, or that none does just now."""
    runs = _runs(vcpus, image, memory)
    told = (
        Evidence("not confirmed: no vCPU runs the kernel just now", "PSTATE of the vCPUs")
        if runs is None
        else Evidence(
            f"runs at {runs.pc:#x}, code of these page tables", f"PC of vCPU {runs.index}"
        )
    )
    return replace(image, evidence=(*image.evidence, told))


def _runs(
    vcpus: Sequence[Registers], image: KernelImage, memory: PhysicalMemory
) -> Registers | None:
    """This is a vCPU that runs the kernel with code that an image's page tables map."""
    for vcpu in islice(vcpus, _MAX_ROOTS):
        if not vcpu.exception_level or vcpu.aarch32:
            continue
        try:
            allowed = walk(memory.read, image.root, image.geometry, vcpu.pc).permissions
        except MemoryFault:
            continue
        if allowed.executable and not allowed.user:
            return vcpu
    return None


def _parts_around(claim: _Claim, memory: PhysicalMemory, distance: int) -> tuple[Extent, ...]:
    """These are the runs around a place that lie at its distance, up to the first large hole.

    Raises:
        TranslationFault: there are more page tables to read than any kernel has there.
    """
    start, end = Va(claim.place - _BEFORE), Va(min(claim.place + _BEHIND, _ADDRESSES))
    found = list(islice(extents(memory.read, claim.root, claim.geometry, start, end), _MAX_EXTENTS))
    if len(found) == _MAX_EXTENTS:
        raise TranslationFault(claim.place, why=f"{_MAX_EXTENTS} runs around it")
    same = [run for run in found if run.va - run.pa == distance and not run.permissions.user]
    parts: list[Extent] = []
    for run in same:
        behind = parts[-1].va + parts[-1].size if parts else run.va
        if run.va - behind > _MAX_HOLE:
            if behind > claim.place:
                break
            parts.clear()
        parts.append(run)
    return tuple(parts)


def _is_image(parts: Sequence[Extent]) -> bool:
    """This tells whether runs are a kernel's: large enough, with code and with data."""
    size = parts[-1].va + parts[-1].size - parts[0].va
    return (
        size >= _MIN_IMAGE_SIZE
        and not parts[0].va % PAGE_SIZE
        and any(part.permissions.executable for part in parts)
        and any(part.permissions.writable for part in parts)
    )
