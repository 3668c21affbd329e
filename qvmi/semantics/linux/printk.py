"""The kernel's log: the ring buffer that ``printk`` writes to without a lock.

References: Linux kernel/printk/printk_ringbuffer.h and .c (``prb_read``, ``get_desc_state``,
``get_data``), kernel/printk/printk.c; it is so since 5.10 (896fbe20b4e2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import CorruptTable, LayoutNotFound, MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, LogRecord
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.symbols.layout import Symbols, address, field, field_offset

__all__ = ["KernelLog"]

_STRUCTURE: Final = "printk_ringbuffer"
_MAX_COUNT_BITS: Final = 24
"""Of descriptors: ``LOG_BUF_SHIFT`` of at most 25 has a descriptor for each 32 bytes."""
_MAX_SIZE_BITS: Final = 31
"""Of text: ``log_buf_len`` is refused above 2 GiB."""
_MAX_GAPS: Final = 1000
"""A log with so many wrong records is none."""
_RETRIES: Final = 3
_STATE_SHIFT: Final = 62
"""``DESC_FLAGS_SHIFT``: the two bits above a descriptor's id are its state."""
_ID_MASK: Final = (1 << _STATE_SHIFT) - 1
_FINALIZED: Final = 2
_BYTE: Final = 8
_WORD: Final = 8
"""Each block of text begins with the id of its descriptor."""
_DATALESS: Final = 1
"""In both positions of a record without text."""
_EMPTY_LINE: Final = 3
"""``EMPTY_LINE_LPOS``; any other position without data stands for text that was lost."""
_SUBSYSTEM_SIZE, _DEVICE_SIZE = 16, 48
"""``PRINTK_INFO_SUBSYSTEM_LEN``, ``PRINTK_INFO_DEVICE_LEN``."""
_NANOSECONDS: Final = 1_000_000_000
_POINTER: Final = Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Ring:
    """This is the ring buffer as it was found.

    Args:
        descriptors, infos: addresses of the two arrays, of ``1 << count_bits`` entries.
        head, tail: ids of the newest and of the oldest descriptor.
        text: address of the text, of ``1 << size_bits`` bytes.
    """

    count_bits: int
    descriptors: int
    infos: int
    head: int
    tail: int
    size_bits: int
    text: int

    def __post_init__(self) -> None:
        if not 0 < self.count_bits <= _MAX_COUNT_BITS or not 0 < self.size_bits <= _MAX_SIZE_BITS:
            sizes = f"2**{self.count_bits} records, 2**{self.size_bits} bytes"
            raise Implausible(f"a ring of {sizes}")
        if (self.head - self.tail) & _ID_MASK >= 1 << self.count_bits:
            raise Implausible(f"the newest record {self.head:#x}, the oldest {self.tail:#x}")


class _Info(NamedTuple):
    """These are the members of a ``struct printk_info``."""

    sequence: int
    time_ns: int
    length: int
    facility: int
    flags_and_level: int
    subsystem: bytes
    device: bytes


class KernelLog:
    """This reads the log of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the log needs, as before 5.10, or describes no possible
            layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._pointer = address(symbols, "prb")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_ring = _ring_reader(space, symbols)
        self._read_descriptor = _descriptor_reader(space, symbols)
        self._read_info = _info_reader(space, symbols)
        self._descriptor_size = _size(symbols, "prb_desc")
        self._info_size = _size(symbols, "printk_info")
        level = field(symbols, "printk_info", "level")
        self._level_shift = level.bit_offset
        self._level_mask = (1 << (level.bit_size or _BYTE)) - 1

    def records(self) -> ListWalk[LogRecord]:
        """This lists the records that are still held, the oldest first.

        A record that is being written is not one yet, and what the kernel overwrites meanwhile is
        one no more, which is counted.

        Raises:
            WalkFailed: the ring cannot be read, or is none.
        """
        try:
            ring = _Ring(*self._read_ring(self._read_pointer(self._pointer)[0]))
        except (MemoryFault, Implausible) as error:
            raise WalkFailed(_STRUCTURE, str(error)) from error
        result: ListWalk[LogRecord] = ListWalk()
        for number in range(((ring.head - ring.tail) & _ID_MASK) + 1):
            identity = (ring.tail + number) & _ID_MASK
            self._add(ring, identity, result)
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many records are wrong"
                result.gaps.append(Gap(_STRUCTURE, Va(ring.descriptors), why))
                break
        return result

    def _add(self, ring: _Ring, identity: int, result: ListWalk[LogRecord]) -> None:
        """This adds one record, if its descriptor is of it before and after it is read."""
        place = identity & ((1 << ring.count_bits) - 1)
        descriptor = ring.descriptors + place * self._descriptor_size
        why = ""
        for _ in range(_RETRIES):
            try:
                before = self._read_descriptor(descriptor)
                if not self._is_of(before, identity):
                    return
                row = self._record(ring, place, identity, before)
            except (MemoryFault, Implausible) as error:
                row, why = None, str(error)
            else:
                if self._read_descriptor(descriptor) == before:
                    result.rows.update({identity: row} if row is not None else {})
                    return
                why = "it changes all the time"
            result.retries += 1
        result.gaps.append(Gap("prb_desc", Va(descriptor), f"record {identity:#x}: {why}"))

    def _is_of(self, descriptor: tuple[Any, ...], identity: int) -> bool:
        """This tells whether a descriptor is that of a whole record; one being used again is not."""
        state = descriptor[0]
        return bool(state & _ID_MASK == identity and state >> _STATE_SHIFT == _FINALIZED)

    def _record(
        self, ring: _Ring, place: int, identity: int, descriptor: tuple[Any, ...]
    ) -> LogRecord | None:
        """This makes the row of a record; None where its text was overwritten."""
        info = _Info._make(self._read_info(ring.infos + place * self._info_size))
        text = self._text(ring, identity, descriptor[1:], info.length)
        if text is None:
            return None
        return LogRecord(
            info.sequence,
            info.time_ns / _NANOSECONDS,
            info.flags_and_level >> self._level_shift & self._level_mask,
            info.facility,
            text_of(text),
            text_of(info.subsystem.partition(b"\0")[0]),
            text_of(info.device.partition(b"\0")[0]),
        )

    def _text(
        self, ring: _Ring, identity: int, positions: tuple[int, int], length: int
    ) -> bytes | None:
        """This reads the block of text between two positions. Corresponds to ``get_data``."""
        begin, following = positions
        if begin & following & _DATALESS:
            return b"" if begin == following == _EMPTY_LINE else None
        mask = (1 << ring.size_bits) - 1
        start, end = begin & mask, following & mask
        if begin >> ring.size_bits != following >> ring.size_bits and end:
            start = 0  # it would not fit before the end of the ring, and lies at its beginning
        end = end or mask + 1
        if start % _WORD or end % _WORD or end - start < _WORD:
            raise Implausible(f"its text lies from {begin:#x} to {following:#x}")
        block = self._space.read(Va(ring.text + start), min(end - start, _WORD + length))
        if int.from_bytes(block[:_WORD], "little") != identity:
            return None
        return block[_WORD:]


def _ring_reader(space: AddressSpace, symbols: Symbols) -> Reader:
    ring = field_offset(symbols, "printk_ringbuffer", "desc_ring")
    text = field_offset(symbols, "printk_ringbuffer", "text_data_ring")

    def members() -> Iterator[tuple[int, str]]:
        for name in ("count_bits", "descs", "infos", "head_id", "tail_id"):
            form = "I" if name == "count_bits" else "Q"
            yield ring + field_offset(symbols, "prb_desc_ring", name), form
        yield text + field_offset(symbols, "prb_data_ring", "size_bits"), "I"
        yield text + field_offset(symbols, "prb_data_ring", "data"), "Q"

    return compile_reader(space, *members())


def _descriptor_reader(space: AddressSpace, symbols: Symbols) -> Reader:
    block = field_offset(symbols, "prb_desc", "text_blk_lpos")
    return compile_reader(
        space,
        (field_offset(symbols, "prb_desc", "state_var"), "Q"),
        (block + field_offset(symbols, "prb_data_blk_lpos", "begin"), "Q"),
        (block + field_offset(symbols, "prb_data_blk_lpos", "next"), "Q"),
    )


def _info_reader(space: AddressSpace, symbols: Symbols) -> Reader:
    device = field_offset(symbols, "printk_info", "dev_info")
    return compile_reader(
        space,
        (field_offset(symbols, "printk_info", "seq"), "Q"),
        (field_offset(symbols, "printk_info", "ts_nsec"), "Q"),
        (field_offset(symbols, "printk_info", "text_len"), "H"),
        (field_offset(symbols, "printk_info", "facility"), "B"),
        (field_offset(symbols, "printk_info", "level"), "B"),
        (device + field_offset(symbols, "dev_printk_info", "subsystem"), f"{_SUBSYSTEM_SIZE}s"),
        (device + field_offset(symbols, "dev_printk_info", "device"), f"{_DEVICE_SIZE}s"),
    )


def _size(symbols: Symbols, type_name: str) -> int:
    size = symbols.size_of(type_name)
    if size is None:
        raise LayoutNotFound(type_name)
    if not size:
        raise CorruptTable("types", f"{type_name} has no size")
    return size
