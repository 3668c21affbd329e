"""Understanding an unknown Linux guest: from registers and RAM to symbols, with the evidence.

The order is by cost. A profile of the same build needs one gate and one comparison. Else the kernel's image,
which the page tables give, holds the kallsyms tables in a form that can be recognised; this costs
the same for every size of guest. Only where that fails is the RAM searched for VMCOREINFO.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import (
    CorruptTable,
    LayoutNotFound,
    MemoryFault,
    SymbolNotFound,
    SymbolsError,
    UnknownGuest,
)
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence
from qvmi.semantics.linux.image.image_search import find_image, find_image_of_build
from qvmi.semantics.linux.image.kallsyms import (
    FINDERS,
    TableFinder,
    tables_by_form,
    tables_by_vmcoreinfo,
)
from qvmi.semantics.linux.image.kernel_image import IMAGE_MAP_START, KernelImage, gate_handler
from qvmi.semantics.linux.image.kernel_map import with_direct_map, with_own_tables
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from qvmi.semantics.linux.tasks.task import COMM_SIZE
from qvmi.symbols.kallsyms import Kallsyms
from qvmi.symbols.layout import Symbols, address, field_offset
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.profile import MAX_BANNER, Profile, ProfileCache
from qvmi.view import View

__all__ = [
    "Kernel",
    "TableFinder",
    "discover",
    "recognise",
    "tables_by_form",
    "tables_by_vmcoreinfo",
    "understand",
    "vmcoreinfo_text",
]

DEFAULT_LINK_START: Final = Va(0xFFFF_FFFF_8100_0000)
"""Where x86-64 kernels are linked, ``CONFIG_PHYSICAL_START`` of 16 MiB."""
_BANNER_START: Final = b"Linux version "
_POINTER: Final = Struct("<Q")
_MAX_VMCOREINFO: Final = 4096
_INTERRUPT_TABLE: Final = "idt_table"
_PROFILE: Final = "profile of this build"


@dataclass(frozen=True, slots=True)
class Kernel:
    """This is a kernel that was understood.

    Args:
        image: where it lies.
        space: its address space, with the image and the direct map as shortcuts.
        symbols: of the running kernel.
        profile: the memo behind ``symbols``; None with symbols given by the user.
        banner: its own banner line.
        build_id: hexadecimal; empty where there is none.
        link_start: where the image would start without KASLR.
        banner_address: where the banner lies.
        evidence: why this is believed.
    """

    image: KernelImage
    space: AddressSpace
    symbols: Symbols
    profile: Profile | None
    banner: bytes
    build_id: str
    link_start: Va
    banner_address: Va
    evidence: tuple[Evidence, ...]

    def still_there(self) -> bool:
        """This tells whether memory still holds this kernel's banner where it was.

        Raises:
            MemoryFault: the guest's memory cannot be read any more.
        """
        return self.space.read(self.banner_address, len(self.banner)) == self.banner

    def over(self, memory: PhysicalMemory) -> "Kernel":
        """This is the same kernel, its variables read from another memory; names and types are not."""
        return self if memory is self.space.memory else replace(self, space=self.space.over(memory))

    @property
    def slide(self) -> int:
        """This is the distance that KASLR moved the image, in bytes."""
        return self.image.start - self.link_start

    @property
    def release(self) -> str:
        """This is what ``uname -r`` says, from the banner."""
        words = self.banner.removeprefix(_BANNER_START).split(b" ", 1)
        return words[0].decode("utf-8", "backslashreplace")


def discover(
    view: View,
    *,
    cache: ProfileCache | None = None,
    symbols: Callable[[KernelImage, AddressSpace], Symbols] | None = None,
    finders: Sequence[TableFinder] = FINDERS,
) -> Kernel:
    """This works out which kernel runs, and how to read it.

    Args:
        view: registers and memory of the guest.
        cache: profiles of kernels seen before; None to start from nothing.
        symbols: makes the symbols from a file of the user's, instead of from the guest's memory.
        finders: how kallsyms is looked for, in this order.

    Raises:
        UnknownGuest: there is no kernel that this room understands; says what was seen.
    """
    image = find_image(view.vcpus, view.memory)
    return understand(image, view.memory, cache=cache, symbols=symbols, finders=finders)


def understand(
    image: KernelImage,
    memory: PhysicalMemory,
    *,
    cache: ProfileCache | None = None,
    symbols: Callable[[KernelImage, AddressSpace], Symbols] | None = None,
    finders: Sequence[TableFinder] = FINDERS,
) -> Kernel:
    """This is :func:`discover` once the image is found.

    Raises:
        UnknownGuest: there is no kernel that this room understands; says what was seen.
    """
    space = image.space(memory)
    if symbols is not None:
        return _with_symbols(image, space, symbols(image, space))
    profile = cache.match(image.start, space.read) if cache else None
    if profile is not None and cache is not None:
        try:
            return _with_profile(image, space, profile, source=_PROFILE)
        except (SymbolsError, MemoryFault):
            cache.remove(profile, image.start)
    return _cold(image, space, memory, finders)


def recognise(view: View, cache: ProfileCache) -> Kernel | None:
    """This recognises a kernel of a build seen before, with a bounded handful of reads.

    Returns:
        None where :func:`discover` has to look, which may find the same profile, or that it is wrong.
    """
    for build in cache.recent():
        image = find_image_of_build(view.vcpus, view.memory, build)
        if image is not None:
            profile = build.profile(image.start)
            with suppress(SymbolsError, MemoryFault):
                return _with_profile(image, image.space(view.memory), profile, source=_PROFILE)
    return None


def _cold(
    image: KernelImage,
    space: AddressSpace,
    memory: PhysicalMemory,
    finders: Sequence[TableFinder],
) -> Kernel:
    """This starts from the image alone."""
    problems: list[str] = []
    missing = "symbol table (kallsyms)"
    for finder in finders:
        try:
            tables = finder(memory, image)
            kallsyms = Kallsyms(space.read, tables)
            profile = _new_profile(image, space, kallsyms)
            missing = "types (BTF)"
            return _with_profile(image, space, profile, source=finder.__name__, first=kallsyms)
        except (SymbolsError, MemoryFault) as error:
            problems.append(f"{finder.__name__}: {error}")
    raise UnknownGuest(
        f"a kernel was found, but no {missing} in it that fits: give an ISF file of it with --isf",
        [f"{item.claim} ({item.source})" for item in image.evidence] + problems,
    )


def _new_profile(image: KernelImage, space: AddressSpace, kallsyms: Kallsyms) -> Profile:
    """This makes the profile of a kernel not seen before.

    Raises:
        SymbolsError: the tables lack what every kernel has.
    """
    at = kallsyms.find("linux_banner")
    if at is None:
        raise SymbolNotFound("linux_banner")
    return Profile(
        banner=_read_banner(space, at),
        banner_address=at,
        tables=kallsyms.tables,
        gate=image.gate or _gate_by_name(image, space, kallsyms),
        image_size=image.end - image.start,
        changed=True,
    )


def _gate_by_name(image: KernelImage, space: AddressSpace, kallsyms: Kallsyms) -> Va | None:
    """This is the handler of exception 0 where no register has told of it, as in a dump."""
    table = kallsyms.find(_INTERRUPT_TABLE)
    gate = None if table is None else gate_handler(space, table)
    return gate if gate is not None and image.start <= gate < image.end else None


def _with_profile(
    image: KernelImage,
    space: AddressSpace,
    profile: Profile,
    *,
    source: str,
    first: Kallsyms | None = None,
) -> Kernel:
    """This checks a profile, new or cached, against the running kernel.

    Raises:
        SymbolsError, MemoryFault: it does not describe this kernel.
    """
    symbols = LiveSymbols(space.read, profile.tables, profile)
    if first is not None:
        symbols.kallsyms = first
    banner = _read_banner(space, profile.banner_address)
    if banner != profile.banner:
        raise CorruptTable("profile", f"its banner is {profile.banner!r}, not {banner!r}")
    image, own_tables = with_own_tables(image, space.memory, symbols)
    space, direct_map = with_direct_map(image, image.space(space.memory), symbols)
    # The guest's own word, not the profile's: another guest of this build may have lied.
    note = parse_vmcoreinfo(vmcoreinfo_text(space, symbols))
    evidence = (
        *image.evidence,
        Evidence(f"{profile.tables.count} symbols", f"kallsyms, found by: {source}"),
        Evidence(_text(banner), f"linux_banner at {profile.banner_address:#x}"),
        *own_tables,
        *direct_map,
    )
    kernel = Kernel(
        image=image,
        space=space,
        symbols=symbols,
        profile=profile,
        banner=banner,
        build_id=note.build_id,
        link_start=_link_start(image, note),
        banner_address=profile.banner_address,
        evidence=evidence,
    )
    _check_first_task(kernel)
    return kernel


def _with_symbols(image: KernelImage, space: AddressSpace, symbols: Symbols) -> Kernel:
    """This uses symbols that the user gave, once they have proven to be of this kernel.

    Raises:
        UnknownGuest: they are of another kernel.
    """
    try:
        at = address(symbols, "linux_banner")
        banner = _read_banner(space, at)
        image, own_tables = with_own_tables(image, space.memory, symbols)
        space, direct_map = with_direct_map(image, image.space(space.memory), symbols)
        note = parse_vmcoreinfo(vmcoreinfo_text(space, symbols))
        evidence = (
            *image.evidence,
            Evidence(_text(banner), f"linux_banner at {at:#x}, by the ISF file given"),
            *own_tables,
            *direct_map,
        )
        kernel = Kernel(
            image=image,
            space=space,
            symbols=symbols,
            profile=None,
            banner=banner,
            build_id=note.build_id,
            link_start=_link_start(image, note),
            banner_address=at,
            evidence=evidence,
        )
        _check_first_task(kernel)
    except (SymbolsError, MemoryFault) as error:
        found = [f"{item.claim} ({item.source})" for item in image.evidence]
        raise UnknownGuest(
            f"the symbols given are not of the kernel that runs here: {error}", found
        ) from error
    return kernel


def _check_first_task(kernel: Kernel) -> None:
    """This checks ``init_task``, the one task that every kernel has and that never changes.

    Raises:
        SymbolsError: the symbols or the layouts do not fit this kernel.
    """
    symbols, space = kernel.symbols, kernel.space
    task = address(symbols, "init_task")

    def member(*names: str) -> Va:
        return Va(task + field_offset(symbols, "task_struct", *names))

    try:
        comm = space.read(member("comm"), COMM_SIZE)
        pid = space.read(member("pid"), 4) + space.read(member("tgid"), 4)
        parent = _POINTER.unpack(space.read(member("real_parent"), 8))[0]
        following = _POINTER.unpack(space.read(member("tasks"), 8))[0]
        back = _POINTER.unpack(space.read(Va(following + 8), 8))[0]
    except LayoutNotFound as error:
        raise CorruptTable("types", f"{error}; {_no_types_help(symbols)}") from error
    if not comm.startswith(b"swapper") or any(pid) or parent != task:
        raise CorruptTable("init_task", f"at {task:#x}: comm {comm!r}, pid {pid.hex()}")
    if back != member("tasks") and space.read(member("tasks"), 8) == _POINTER.pack(following):
        raise CorruptTable("init_task", f"its list of tasks leads to {following:#x}, not back")


def _no_types_help(symbols: Symbols) -> str:
    if isinstance(symbols, LiveSymbols) and symbols.btf is None:
        return "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): give an ISF file of it with --isf"
    return "the type information lacks it: give an ISF file of this kernel with --isf"


def _read_banner(space: AddressSpace, at: Va) -> bytes:
    """This reads ``linux_banner``.

    Raises:
        CorruptTable: there is none at this address.
    """
    banner = space.read(at, MAX_BANNER).partition(b"\0")[0].rstrip(b"\n")
    if not banner.startswith(_BANNER_START):
        raise CorruptTable("linux_banner", f"at {at:#x} there is {banner[:32]!r}")
    return banner


def vmcoreinfo_text(space: AddressSpace, symbols: Symbols) -> bytes:
    """This is the text of the note that ``vmcoreinfo_data`` points to; empty where there is none."""
    pointer = symbols.find("vmcoreinfo_data")
    if pointer is None:
        return b""
    try:
        data = Va(_POINTER.unpack(space.read(pointer, _POINTER.size))[0])
        text = space.read(data, _MAX_VMCOREINFO) if data else b""
    except MemoryFault:
        return b""
    return text.partition(b"\0")[0]


def _link_start(image: KernelImage, note: VmcoreInfo) -> Va:
    """This is where the image would start without KASLR.

    On x86-64 it moves within its 1 GiB. On aarch64 it moves anywhere in its half, from where it was
    linked, which depends on the release and is told by the note alone.
    """
    offset = note.kaslr_offset
    if image.architecture == "x86_64":
        lowest, default = IMAGE_MAP_START, DEFAULT_LINK_START
    else:
        lowest, default = Va(image.geometry.spans[-1][0]), image.start
    if offset is None or not 0 <= offset <= image.start - lowest:
        return default
    return Va(image.start - offset)


def _text(banner: bytes) -> str:
    return banner.decode("utf-8", "backslashreplace")
