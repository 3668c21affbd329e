"""Type information that is damaged, loops, or is made to be searched for ever."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import MAX_BTF_SIZE, MAX_TYPES, Btf, BtfKind
from qvmi.symbols.btf_layout import BtfLayouts
from qvmi.symbols.type_layout import TypeName
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.btf import BtfBuilder, Member, pack_btf
from tests.synthetic.guest import kernel_types
from tests.synthetic.kernel_memory import LAYOUTS

KERNEL = kernel_types(LAYOUTS).build()
MIB = 1 << 20

wrong_words = st.tuples(
    st.integers(0, len(KERNEL) // 4 - 1),
    st.one_of(
        st.sampled_from(
            [0, 1, 2, 0xFFFF, 4 << 24 | 0xFFFF, 31 << 24, 0xFFFF_FFFF, 8 << 24, 1 << 31]
        ),
        st.integers(0, 0xFFFF_FFFF),
    ),
)


def read_everything(btf: Btf) -> None:
    for type_id in range(len(btf)):
        record = btf.type(type_id)
        btf.resolved(type_id)
        btf.words(record, 3)
        if record.kind in {BtfKind.STRUCT, BtfKind.UNION}:
            list(btf.members(record))


@settings(max_examples=300)
@given(st.lists(wrong_words, min_size=1, max_size=10), st.integers(0, len(KERNEL)))
def test_damaged_types_are_read_or_corrupt(wrong: list[tuple[int, int]], size: int) -> None:
    data = bytearray(KERNEL)
    for place, word in wrong:
        struct.pack_into("<I", data, 4 * place, word)
    for given_bytes in (bytes(data), bytes(data[:size])):
        with suppress(CorruptTable):
            btf = Btf(given_bytes)
            found = btf.find_compound("task_struct")
            if found is not None:
                list(btf.members(found))
            read_everything(btf)


@settings(max_examples=100)
@given(st.binary(max_size=400), st.binary(max_size=60))
def test_any_split_types_are_read_or_corrupt(types: bytes, strings: bytes) -> None:
    with suppress(CorruptTable):
        read_everything(Btf(pack_btf(types, strings), Btf(KERNEL)))


@settings(max_examples=300)
@given(st.lists(wrong_words, min_size=1, max_size=10))
def test_damaged_types_are_laid_out_or_corrupt(wrong: list[tuple[int, int]]) -> None:
    data = bytearray(KERNEL)
    for place, word in wrong:
        struct.pack_into("<I", data, 4 * place, word)
    with suppress(CorruptTable):
        layouts = BtfLayouts(Btf(bytes(data)))
        for name in ("task_struct", "list_head", "cred", "unsigned int"):
            with suppress(CorruptTable):
                layouts.find(TypeName(name, None))


def test_a_struct_of_types_that_are_endless_to_write_is_given_up_within_bounds() -> None:
    btf = BtfBuilder()
    number = btf.int_("int", 4)
    function = number
    for _ in range(12):  # each is one that takes the one before a hundred times
        function = btf.function_prototype(0, {f"p{at}": function for at in range(100)})
    btf.struct_("endless", 8, [Member(f"m{at}", function) for at in range(1000)])
    with cpu_seconds(30), peak_mib(200), pytest.raises(CorruptTable, match="too many others"):
        BtfLayouts(Btf(btf.build())).find(TypeName("endless", None))


def test_types_full_of_the_wanted_number_are_given_up_within_bounds() -> None:
    # The name's offset is four equal bytes, which are found at every byte of the types.
    strings = bytes(0x0101_0101) + b"task_struct\0"
    types = b"\x01" * (12 * MIB)
    with cpu_seconds(30), pytest.raises(CorruptTable, match="occurs more than"):
        Btf(pack_btf(types, strings)).find_compound("task_struct")


def test_more_types_than_any_kernel_has_are_refused() -> None:
    record = struct.pack("<III", 0, 7 << 24, 0)
    types = record * (MAX_TYPES + 1)
    assert len(types) < MAX_BTF_SIZE
    with cpu_seconds(30), pytest.raises(CorruptTable, match="types"):
        len(Btf(pack_btf(types, b"\0")))


def test_members_without_names_that_end_cost_little() -> None:
    strings = b"\0" + b"x" * (4 * MIB)
    types = struct.pack("<III", 0, 4 << 24 | 0xFFFF, 0) + struct.pack("<III", 1, 0, 0) * 0xFFFF
    btf = Btf(pack_btf(types, strings))
    with cpu_seconds(10), pytest.raises(CorruptTable, match="no name"):
        list(btf.members(btf.type(1)))


def test_the_longest_names_of_the_most_members_keep_small() -> None:
    strings = b"\0" + b"x" * 511 + b"\0"
    types = struct.pack("<III", 0, 4 << 24 | 0xFFFF, 0) + struct.pack("<III", 1, 0, 0) * 0xFFFF
    btf = Btf(pack_btf(types, strings))
    with cpu_seconds(10), peak_mib(20):
        assert sum(1 for _ in btf.members(btf.type(1))) == 0xFFFF


def test_the_longest_chain_of_typedefs_ends() -> None:
    b = BtfBuilder()
    for number in range(1000):
        b.typedef("", number + 2)
    b.struct_("end", 4, [Member("x", 0)])
    with pytest.raises(CorruptTable, match="defined by itself"):
        Btf(b.build()).resolved(1)
