"""Values by types written by hand, true and false."""

import struct

import pytest

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf
from qvmi.symbols.btf_names import enumerators, variable_type
from qvmi.symbols.btf_values import BtfValues
from tests.synthetic.btf import BtfBuilder, Member

BOOL = 4 << 24 | 8


class Types:
    """This is a BTF with the types that structs are made of."""

    def __init__(self) -> None:
        self.builder = BtfBuilder()
        self.byte = self.builder.int_("unsigned char", 1)
        self.int = self.builder.int_("int", 4, signed=True)
        self.long = self.builder.int_("unsigned long", 8)
        self.bool = self.builder.record(1, "_Bool", 1, BOOL)

    @property
    def values(self) -> BtfValues:
        return BtfValues(Btf(self.builder.build()))


def test_numbers_have_their_sign() -> None:
    types = Types()
    assert types.values.value(types.int, b"\xff\xff\xff\xff") == -1
    assert types.values.value(types.byte, b"\xff") == 255
    assert types.values.value(types.long, struct.pack("<Q", 1 << 63)) == 1 << 63
    assert types.values.value(types.bool, b"\1") is True


def test_a_struct_is_its_members_and_those_of_anonymous_ones() -> None:
    types = Types()
    build = types.builder
    inner = build.union("", 4, [Member("number", types.int), Member("first", types.byte)])
    array = build.array(types.byte, types.int, 3)
    pointer = build.pointer(build.forward("task"))
    whole = build.struct_(
        "whole",
        24,
        [Member("", inner), Member("bytes", array, 4), Member("next", pointer, 8)],
    )
    data = struct.pack("<i3BxQQ", 0x1FE, 1, 2, 3, 0xFFFF_8880_0000_0000, 0)
    assert types.values.size(whole) == 24
    assert types.values.value(whole, data) == {
        "number": 0x1FE,
        "first": 0xFE,
        "bytes": [1, 2, 3],
        "next": 0xFFFF_8880_0000_0000,
    }


def test_bit_fields_lie_across_bytes() -> None:
    types = Types()
    fields = [
        Member("low", types.int, bit_offset=0, bits=3),
        Member("middle", types.long, bit_offset=3, bits=9),
        Member("high", types.int, bit_offset=12, bits=4),
    ]
    packed = types.builder.struct_("packed", 4, fields)
    data = struct.pack("<I", 0b101 | 0x155 << 3 | 0b1001 << 12)
    assert types.values.value(packed, data) == {"low": -3, "middle": 0x155, "high": -7}


@pytest.mark.parametrize("count", [0, 1 << 20])
def test_what_has_no_size_has_no_values(count: int) -> None:
    types = Types()
    nothing = types.builder.struct_("nothing", 0, [])
    array = types.builder.array(nothing, types.int, count)
    if count:
        with pytest.raises(CorruptTable):
            types.values.value(array, b"")
    else:
        assert types.values.value(array, b"") == []
    assert types.values.value(0, b"") is None


def test_types_are_named_as_c_names_them() -> None:
    types = Types()
    build = types.builder
    task = build.struct_("task_struct", 8, [Member("pid", types.int)])
    pointer = build.pointer(build.const(task))
    wanted = {
        pointer: "struct task_struct *",
        build.pointer(pointer): "struct task_struct **",
        build.array(types.long, types.int, 4): "unsigned long[4]",
        build.typedef("u64", types.long): "u64",
        build.pointer(0): "void *",
    }
    values = types.values
    assert {type_id: values.name(type_id) for type_id in wanted} == wanted


def test_a_struct_within_itself_ends() -> None:
    types = Types()
    own = types.builder.next_id
    types.builder.struct_("endless", 8, [Member("again", own), Member("more", own)])
    with pytest.raises(CorruptTable, match="made of more than"):
        types.values.value(own, bytes(8))


def test_an_array_of_itself_ends() -> None:
    types = Types()
    own = types.builder.next_id
    types.builder.array(own, types.int, 2)
    for look in (types.values.size, types.values.name):
        with pytest.raises(CorruptTable, match="made of more than"):
            look(own)


def test_more_values_than_any_variable_has_are_refused() -> None:
    types = Types()
    fields = [Member(f"m{n}", types.int, bit_offset=0, bits=1) for n in range(1000)]
    wide = types.builder.struct_("wide", 1, fields)
    many = types.builder.array(wide, types.int, 1000)
    with pytest.raises(CorruptTable, match="more than"):
        types.values.value(many, bytes(1000))


def test_enumerators_and_variables_are_found_by_name() -> None:
    types = Types()
    types.builder.enum("kind", {})
    types.builder.enum("kind", {"KIND_A": 0, "KIND_B": 7})
    types.builder.record(14, "counter", types.long, 1)
    btf = Btf(types.builder.build())
    assert enumerators(btf, "kind") == {0: "KIND_A", 7: "KIND_B"}
    assert enumerators(btf, "no such") == {}
    assert variable_type(btf, "counter") == types.long
    assert variable_type(btf, "kind") is None
