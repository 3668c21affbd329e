"""The memory map: a ``struct page`` for each frame of RAM, which says what the frame is used for.

References: Linux include/linux/mm_types.h (``struct page``, ``struct folio``), include/linux/page-flags.h
(``compound_head``, ``PAGE_MAPPING_ANON``), mm/page_alloc.c (``buddy_order``);
include/asm-generic/memory_model.h (``vmemmap``), arch/x86/include/asm/pgtable_64.h (``vmemmap_base``),
arch/arm64/include/asm/memory.h (``VMEMMAP_START``). What a tail page says of its head is a mask since 7.1
(8c846c879e22).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.errors import CorruptTable, LayoutNotFound, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo
from qvmi.semantics.linux.pages.page_flags import PageFlags, Use
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.symbols.layout import Symbols, address, field, field_offset

__all__ = ["MemMap", "PageUse"]

_ADDRESSES: Final = 1 << 64
_KERNEL_HALF: Final = 1 << 63
_PAGE_SHIFT: Final = 12
_POINTER: Final = Struct("<Q")
_SIGNED: Final = Struct("<q")
_BYTE: Final = Struct("<B")
_TAIL: Final = 1
_OWNED: Final = frozenset({Use.FILE, Use.ANONYMOUS})
_MAPPING_FLAGS: Final = 3
_ANONYMOUS: Final = 1
_MOVABLE: Final = 2
_MAX_ORDER: Final = 10
"""Of a block of free pages (``MAX_PAGE_ORDER``)."""
_MAX_FOLIO_ORDER: Final = 20
"""Of the largest folios, of 1 GiB pages, are 18; a larger one is a lie."""
_MAX_PAGE_STRUCT: Final = 256
_BATCH: Final = 4096
"""Frames whose structs are read at once: 256 KiB."""
_VA_BITS: Final = (52, 48, 47, 42, 39, 36)
_VA_BITS_MIN: Final = 48
_GIB, _MIB = 1 << 30, 1 << 20


class PageUse(msgspec.Struct, frozen=True, gc=False):
    """This is what one frame of RAM is used for.

    Args:
        use: of which kind it is.
        page: address of the ``struct page`` of the first page of its folio or slab.
        first: physical address of that page; several pages may be one folio.
        mapping: of page cache the ``address_space``, of anonymous memory the ``anon_vma``; else 0.
        index: of page cache the page's number in the file; of anonymous memory that which
            ``vm_area_struct.vm_pgoff`` counts in. Else what the field is used for.
        flags: of the first page.
    """

    use: Use
    page: Va
    first: Pa
    mapping: Va
    index: int
    flags: int


class MemMap:
    """This reads the memory map of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        note: the kernel's note for crash dumps.

    Attributes:
        flags: which flags and types this kernel has.
        base: where the struct of frame 0 would lie.
        size: of a ``struct page`` in bytes.

    Raises:
        SymbolsError: the profile lacks what this needs, or nothing that is known of the kernel leads
            to its map.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, note: VmcoreInfo) -> None:
        self._space = space
        self.flags = PageFlags(symbols, note)
        self.size = _page_size(symbols)
        self._layout = _page_layout(symbols, self.size)
        self._read_page = space.unpacker(self._layout)
        self._read_byte = space.unpacker(_BYTE)
        self._read_pointer = space.unpacker(_POINTER)
        self._order = _order_offset(symbols, self.size)
        power_of_two = self.size & (self.size - 1) == 0
        self._masks = power_of_two and symbols.find_field("zone", ("vmemmap_tails",)) is not None
        self._private = field_offset(symbols, "page", "private")
        self.base = self._found_base(symbols, note)

    def page_at(self, pa: Pa) -> Va:
        """This is the address of the ``struct page`` of a frame."""
        return Va((self.base + (pa >> _PAGE_SHIFT) * self.size) % _ADDRESSES)

    def pa_of(self, page: Va) -> Pa:
        """This is the physical address of the frame that a ``struct page`` is of.

        Raises:
            Implausible: no such struct can lie there.
        """
        frame, beside = divmod(page - self.base, self.size)
        pa = frame << _PAGE_SHIFT
        if beside or not 0 <= pa < self._space.memory.ranges[-1].end:
            raise Implausible(f"no struct page of a frame of RAM lies at {page:#x}")
        return Pa(pa)

    def use_of(self, pa: Pa) -> PageUse:
        """This tells what the frame of a physical address is used for.

        Raises:
            MemoryFault: it has no ``struct page``.
            Implausible: what lies there is none.
        """
        return self.at(self.page_at(pa))

    def at(self, page: Va) -> PageUse:
        """This tells what the frame is used for that a ``struct page`` is of.

        Raises:
            MemoryFault: there is no struct at this address.
            Implausible: what lies there is none.
        """
        return self._use(page, self._read_page(page))

    def uses(self, first: Pa, count: int) -> Iterator[PageUse | None]:
        """This tells of frames that follow each other, in order, about a million in a few seconds.

        Args:
            first: physical address in the first one.
            count: how many.

        Returns:
            None for a frame that has no ``struct page``, or an implausible one.
        """
        for done in range(0, count, _BATCH):
            pa = Pa(first + done * PAGE_SIZE)
            size = min(_BATCH, count - done)
            try:
                raw = self._space.read(self.page_at(pa), size * self.size)
            except MemoryFault:
                yield from (self._use_or_none(Pa(pa + n * PAGE_SIZE)) for n in range(size))
                continue
            yield from self._uses_of(self.page_at(pa), raw)

    def order_of(self, page: Va, flags: int) -> int:
        """This is the order of the folio whose first page has these flags: it has 2**order pages.

        Raises:
            MemoryFault: it cannot be read.
            Implausible: it is too large.
        """
        if not flags & self.flags.head:
            return 0
        order: int = self._read_byte(page + self._order)[0]
        if order > _MAX_FOLIO_ORDER:
            raise Implausible(f"the folio at {page:#x} is of order {order}")
        return order

    def _use_or_none(self, pa: Pa) -> PageUse | None:
        try:
            return self.use_of(pa)
        except (MemoryFault, Implausible):
            return None

    def _uses_of(self, page: Va, raw: bytes) -> Iterator[PageUse | None]:
        """This tells of the frames whose structs begin at an address; each head is looked at once."""
        head, behind_head, its = 0, 0, None
        for number, values in enumerate(self._layout.iter_unpack(raw)):
            here = Va(page + number * self.size)
            if values[1] & _TAIL and its is not None and self._head(here, values[1]) == head:
                yield self._within(its, here)
                continue
            if here < behind_head and self._kind(*values) is Use.UNCOUNTED:
                yield self._row(here, Use.FREE, values)
                continue
            try:
                its = self._use(here, values)
                head = its.page
                if its.use is Use.FREE:
                    behind_head = here + self._block_size(here)
            except (MemoryFault, Implausible):
                its = None
            yield its

    def _block_size(self, page: int) -> int:
        """This is how many bytes of structs a block of free pages has, from that of its first page.

        None at all where it is not the first.
        """
        if self.flags.use_by_type(self._read_page(page)[4]) is not Use.FREE:
            return 0
        order = int(self._read_pointer(page + self._private)[0])
        return self.size << order if order <= _MAX_ORDER else 0

    def _head(self, page: int, info: int) -> int:
        """This is the head of a tail page, by the word that says that it is one."""
        return page & info if self._masks else info - _TAIL

    def _within(self, its: PageUse, page: Va) -> PageUse:
        """This is the use of a tail page, by that of its head."""
        index = its.index + (page - its.page) // self.size
        return PageUse(its.use, its.page, its.first, its.mapping, index, its.flags)

    def _use(self, page: Va, values: tuple[int, ...]) -> PageUse:
        if values[1] & _TAIL:
            head = Va(self._head(page, values[1]))
            its = self._read_page(head)
            behind = (page - head) // self.size
            if its[1] & _TAIL or not 0 < behind < 1 << _MAX_FOLIO_ORDER:
                raise Implausible(f"the struct page at {page:#x} has no head: {head:#x}")
            return self._within(self._use(head, its), page)
        use = self._kind(*values)
        if use is Use.UNCOUNTED and self._is_in_free_block(page):
            use = Use.FREE
        return self._row(page, use, values)

    def _row(self, page: Va, use: Use, values: tuple[int, ...]) -> PageUse:
        flags, _, mapping, index, *_ = values
        owner = mapping & ~_MAPPING_FLAGS if use in _OWNED else 0
        return PageUse(use, page, self.pa_of(page), Va(owner), index, flags)

    def _kind(
        self, flags: int, info: int, mapping: int, index: int, page_type: int, count: int
    ) -> Use:
        del info, index
        known = self.flags
        if flags & known.reserved:
            return Use.RESERVED
        use = known.types.get(page_type >> known.type_shift)
        if use is not None:
            return use
        if flags & known.slab:
            return Use.SLAB
        if not count:
            return Use.UNCOUNTED
        if mapping & _ANONYMOUS:
            return Use.ANONYMOUS
        return Use.FILE if mapping >= _KERNEL_HALF and not mapping & _MOVABLE else Use.KERNEL

    def _is_in_free_block(self, page: int) -> bool:
        """This tells whether a page is behind the first one of a block of free pages."""
        frame = (page - self.base) // self.size
        for order in range(1, _MAX_ORDER + 1):
            first = self.base + (frame >> order << order) * self.size
            try:
                size = self._block_size(first)
            except MemoryFault:
                return False
            if size:
                return page < first + size
        return False

    def _found_base(self, symbols: Symbols, note: VmcoreInfo) -> int:
        """This is the first of the places that the kernel may have its map at where it is one.

        Raises:
            SymbolsError: none of them is.
        """
        known = address(symbols, "init_task")
        tried = []
        for base in _bases(self._space, symbols, note, self.size):
            page = (base + (self._space.translate(known) >> _PAGE_SHIFT) * self.size) % _ADDRESSES
            tried.append(f"{base % _ADDRESSES:#x}")
            try:
                flags, info, _, _, _, count = self._read_page(page)
            except MemoryFault:
                continue
            if flags & self.flags.reserved and count and not info & _TAIL:
                return base % _ADDRESSES
        why = f"no map at {', '.join(tried)}" if tried else "nothing tells where it is"
        raise CorruptTable("struct page", why)


def _page_size(symbols: Symbols) -> int:
    size = symbols.size_of("page")
    if size is None:
        raise LayoutNotFound("page")
    if not 0 < size <= _MAX_PAGE_STRUCT:
        raise CorruptTable("types", f"a struct page of {size} bytes")
    return size


def _page_layout(symbols: Symbols, size: int) -> Struct:
    """This is a whole ``struct page``: flags, head, mapping, index, type and count.

    Raises:
        SymbolsError: the members are missing, or do not lie in this order.
    """
    members = (
        (field_offset(symbols, "page", "flags"), "Q"),
        (field_offset(symbols, "page", "compound_head", "compound_info"), "Q"),
        (field_offset(symbols, "page", "mapping"), "Q"),
        (field_offset(symbols, "page", "index", "__folio_index"), "Q"),
        (field_offset(symbols, "page", "page_type"), "I"),
        (field_offset(symbols, "page", "_refcount"), "I"),
    )
    layout, position = "<", 0
    for offset, form in members:
        if not position <= offset <= size - Struct(form).size:
            raise CorruptTable("types", f"a member of struct page at {offset}")
        layout += f"{offset - position}x{form}"
        position = offset + Struct(form).size
    return Struct(f"{layout}{size - position}x")


def _order_offset(symbols: Symbols, size: int) -> int:
    """This is where a folio's order lies, from its first ``struct page``: in the second one."""
    if symbols.size_of("folio") is None:
        return size + field_offset(symbols, "page", "compound_order")
    return field(symbols, "folio", "_folio_order", "_flags_1").offset


def _bases(space: AddressSpace, symbols: Symbols, note: VmcoreInfo, size: int) -> Iterator[int]:
    """This iterates where the struct of frame 0 may lie."""
    variable = symbols.find("vmemmap_base")
    if variable is not None:
        yield _POINTER.unpack(space.read(variable, _POINTER.size))[0]
    ram = symbols.find("memstart_addr")
    if ram is None:
        return
    start: int = _SIGNED.unpack(space.read(ram, _SIGNED.size))[0]
    before = (start >> _PAGE_SHIFT) * size
    noted = note.number("VMEMMAP_START")
    if noted is not None:
        yield noted - before
    for bits in _VA_BITS:
        yield from (base - before for base in _aarch64_starts(bits, size))


def _aarch64_starts(bits: int, size: int) -> Iterator[int]:
    """These are the values that ``VMEMMAP_START`` had with so many bits of addresses."""
    covered = (1 << bits) - (1 << (min(bits, _VA_BITS_MIN) - 1))
    all_pages = (covered >> _PAGE_SHIFT) * size
    yield -_GIB - all_pages  # since 6.9
    yield -(1 << bits >> _PAGE_SHIFT) * size  # since 5.11
    yield -2 * _MIB - all_pages
