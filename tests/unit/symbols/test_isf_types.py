"""BTF becomes ISF types; the BTF is written by hand, the expected JSON is what dwarf2json writes."""

from struct import pack
from typing import Any

import msgspec
import pytest

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf
from qvmi.symbols.isf_types import KernelTypes, kernel_types
from tests.synthetic.btf import BtfBuilder, Member, pack_btf

VOID = {"kind": "base", "name": "void"}
INT = {"kind": "base", "name": "int"}


Place = tuple[str, int, int] | tuple[str, int, int, int]
"""(name, type id, offset in bits) of a member, and its width in bits where it is a bit-field."""


def struct(btf: BtfBuilder, name: str, size: int, *fields: Place, union: bool = False) -> int:
    members = [Member(text, of, bit_offset=at, bits=sum(bits)) for text, of, at, *bits in fields]
    return btf.union(name, size, members) if union else btf.struct_(name, size, members)


def integer(
    btf: BtfBuilder, name: str, size: int, *, encoding: int = 0, offset: int = 0, bits: int = 0
) -> int:
    return btf.record(1, name, size, encoding << 24 | offset << 16 | (bits or 8 * size))


def enum(
    btf: BtfBuilder, name: str, size: int, values: dict[str, int], *, signed: bool = False
) -> int:
    words = [word for text, value in values.items() for word in (btf.string(text), value)]
    return btf.record(6, name, size, *words, vlen=len(values), flag=signed)


def enum64(btf: BtfBuilder, name: str, values: dict[str, int], *, signed: bool = False) -> int:
    words = [
        word
        for text, value in values.items()
        for word in (btf.string(text), value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)
    ]
    return btf.record(19, name, 8, *words, vlen=len(values), flag=signed)


def prototype(btf: BtfBuilder, *parameters: int) -> int:
    return btf.function_prototype(0, {f"p{n}": one for n, one in enumerate(parameters)})


def types(writer: BtfBuilder) -> KernelTypes:
    return kernel_types(Btf(writer.build()))


def plain(value: object) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


def fields(writer: BtfBuilder, name: str) -> dict[str, Any]:
    return plain(types(writer).user_types[name].fields)


@pytest.mark.parametrize(
    ("encoding", "name", "size", "kind", "signed"),
    [
        (1, "int", 4, "int", True),
        (0, "long unsigned int", 8, "int", False),
        (1, "char", 1, "char", True),
        (0, "unsigned char", 1, "char", False),
        (2, "char8_t", 1, "char", False),
        (4, "_Bool", 1, "bool", False),
        (1, "__int128", 16, "int", True),
    ],
)
def test_an_integer_keeps_size_sign_and_kind(
    encoding: int, name: str, size: int, kind: str, *, signed: bool
) -> None:
    btf = BtfBuilder()
    integer(btf, name, size, encoding=encoding)
    expected = {"size": size, "signed": signed, "kind": kind, "endian": "little"}
    assert plain(types(btf).base_types[name]) == expected


def test_what_readers_count_on_is_there_in_any_case() -> None:
    base_types = types(BtfBuilder()).base_types
    assert plain(base_types["pointer"]) == {
        "size": 8,
        "signed": False,
        "kind": "int",
        "endian": "little",
    }
    assert plain(base_types["void"])["kind"] == "void"


def test_the_kernels_own_word_on_an_integer_counts_more_than_the_standard() -> None:
    btf = BtfBuilder()
    integer(btf, "char", 1, encoding=0)
    assert not types(btf).base_types["char"].signed


def test_a_member_is_described_through_pointers_arrays_and_qualifiers() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    inner = btf.const(btf.type_tag("rcu", btf.pointer(btf.const(number))))
    matrix = btf.array(btf.array(number, number, 3), number, 2)
    callback = btf.pointer(prototype(btf, number))
    struct(btf, "holder", 64, ("one", inner, 0), ("many", matrix, 64), ("call", callback, 256),
        ("any", btf.pointer(0), 320), ("ratio", btf.float_("double", 8), 384),
    )  # fmt: skip
    assert fields(btf, "holder") == {
        "one": {"type": {"kind": "pointer", "subtype": INT}, "offset": 0},
        "many": {
            "type": {
                "kind": "array",
                "count": 2,
                "subtype": {"kind": "array", "count": 3, "subtype": INT},
            },
            "offset": 8,
        },
        "call": {"type": {"kind": "pointer", "subtype": {"kind": "function"}}, "offset": 32},
        "any": {"type": {"kind": "pointer", "subtype": VOID}, "offset": 40},
        "ratio": {"type": {"kind": "base", "name": "double"}, "offset": 48},
    }


def test_a_struct_may_point_to_itself() -> None:
    btf = BtfBuilder()
    struct(btf, "node", 8, ("next", 2, 0))
    btf.pointer(1)
    expected = {"kind": "pointer", "subtype": {"kind": "struct", "name": "node"}}
    assert fields(btf, "node") == {"next": {"type": expected, "offset": 0}}


def test_anonymous_members_are_marked_and_kept_apart_even_at_one_offset() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    first = struct(btf, "", 4, ("a", number, 0))
    second = struct(btf, "", 4, ("b", number, 0))
    struct(btf, "either", 4, ("", first, 0), ("", second, 0), union=True)
    found = fields(btf, "either")
    assert [one["anonymous"] for one in found.values()] == [True, True]
    assert [one["type"]["name"] for one in found.values()] == ["unnamed_2", "unnamed_3"]


def test_an_anonymous_struct_takes_the_name_of_its_typedef() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    counter = struct(btf, "", 4, ("counter", number, 0))
    atomic = btf.typedef("atomic_t", btf.const(counter))
    btf.typedef("refcount_t", atomic)
    struct(btf, "user", 4, ("count", atomic, 0))
    assert fields(btf, "atomic_t") == {"counter": {"type": INT, "offset": 0}}
    assert fields(btf, "user")["count"]["type"] == {"kind": "struct", "name": "atomic_t"}


def test_a_typedef_does_not_take_a_name_from_a_struct_that_has_it() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    struct(btf, "spot", 8, ("tagged", number, 0))
    anonymous = struct(btf, "", 4, ("untagged", number, 0))
    btf.typedef("spot", anonymous)
    assert list(fields(btf, "spot")) == ["tagged"]
    assert list(fields(btf, f"unnamed_{anonymous:x}")) == ["untagged"]


def test_of_two_structs_of_one_name_the_one_in_use_keeps_it() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    struct(btf, "node", 4, ("unused", number, 0))
    used = struct(btf, "node", 8, ("used", number, 0))
    struct(btf, "list", 8, ("head", btf.pointer(btf.const(used)), 0))
    assert list(fields(btf, "node")) == ["used"]
    assert list(fields(btf, "node__2")) == ["unused"]
    assert fields(btf, "list")["head"]["type"]["subtype"]["name"] == "node"


def test_parameters_of_functions_count_as_use() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    struct(btf, "node", 4, ("unused", number, 0))
    used = struct(btf, "node", 8, ("used", number, 0))
    btf.function("visit", prototype(btf, btf.pointer(used)))
    assert list(fields(btf, "node")) == ["used"]


def test_of_two_structs_of_one_name_that_are_used_alike_the_first_keeps_it() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    struct(btf, "node", 4, ("first", number, 0))
    struct(btf, "node", 8, ("second", number, 0))
    struct(btf, "node__2", 8, ("taken", number, 0))
    found = types(btf).user_types
    assert [list(found[name].fields) for name in ("node", "node__2", "node__3")] == [
        ["first"],
        ["taken"],
        ["second"],
    ]


def test_a_struct_and_a_union_share_their_names() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    struct(btf, "both", 4, ("s", number, 0))
    struct(btf, "both", 4, ("u", number, 0), union=True)
    found = types(btf).user_types
    assert (found["both"].kind, found["both__2"].kind) == ("struct", "union")


def test_a_declaration_refers_to_the_name_and_defines_nothing() -> None:
    btf = BtfBuilder()
    struct(btf, "owner", 16, ("s", btf.pointer(btf.forward("hidden")), 0),
               ("u", btf.pointer(btf.record(7, "hidden_u", 0, flag=True)), 64))  # fmt: skip
    found = fields(btf, "owner")
    assert found["s"]["type"]["subtype"] == {"kind": "struct", "name": "hidden"}
    assert found["u"]["type"]["subtype"] == {"kind": "union", "name": "hidden_u"}
    assert list(types(btf).user_types) == ["owner"]


@pytest.mark.parametrize(
    ("at", "width", "offset", "position"),
    [(0, 3, 0, 0), (3, 7, 0, 3), (31, 1, 0, 31), (32, 32, 4, 0), (36, 1, 4, 4), (30, 4, 3, 6)],
)
def test_a_bit_field_lies_in_an_integer_that_holds_all_of_it(
    at: int, width: int, offset: int, position: int
) -> None:
    btf = BtfBuilder()
    number = integer(btf, "unsigned int", 4)
    struct(btf, "flags", 8, ("bits", btf.typedef("u32", number), at, width))
    assert fields(btf, "flags")["bits"] == {
        "offset": offset,
        "type": {
            "kind": "bitfield",
            "bit_position": position,
            "bit_length": width,
            "type": {"kind": "base", "name": "unsigned int"},
        },
    }


def test_a_packed_bit_field_wider_than_its_integer_allows_is_read_from_a_wider_one() -> None:
    btf = BtfBuilder()
    number = integer(btf, "unsigned int", 4)
    struct(btf, "packed", 8, ("bits", number, 7, 32))
    found = fields(btf, "packed")["bits"]
    assert (found["offset"], found["type"]["bit_position"]) == (0, 7)
    assert found["type"]["type"]["name"] == "long unsigned int"


def test_a_bit_field_of_an_enumeration_names_it() -> None:
    btf = BtfBuilder()
    colour = enum(btf, "colour", 4, {"RED": 0, "BLUE": 1})
    struct(btf, "pixel", 4, ("colour", colour, 8, 2))
    assert fields(btf, "pixel")["colour"]["type"]["type"] == {"kind": "enum", "name": "colour"}


def test_an_integer_narrower_than_its_bytes_is_a_bit_field() -> None:
    btf = BtfBuilder()
    nibble = integer(btf, "unsigned int", 4, offset=2, bits=4)
    struct(btf, "old", 4, ("bits", btf.const(nibble), 8))
    found = fields(btf, "old")["bits"]
    assert (found["offset"], found["type"]["bit_position"], found["type"]["bit_length"]) == (
        0,
        10,
        4,
    )


def test_enumerations_keep_their_values_and_their_sign() -> None:
    btf = BtfBuilder()
    enum(btf, "signed", 4, {"MINUS": -2, "PLUS": 1}, signed=True)
    enum(btf, "unsigned", 4, {"TOP": 0xFFFFFFFF})
    enum(btf, "byte", 1, {"B": 7})
    enum64(btf, "wide", {"HIGH": 1 << 40})
    enum64(btf, "wide_signed", {"LOW": -(1 << 40)}, signed=True)
    found = plain(types(btf).enums)
    assert found == {
        "signed": {"size": 4, "base": "int", "constants": {"MINUS": -2, "PLUS": 1}},
        "unsigned": {"size": 4, "base": "unsigned int", "constants": {"TOP": 0xFFFFFFFF}},
        "byte": {"size": 1, "base": "unsigned char", "constants": {"B": 7}},
        "wide": {"size": 8, "base": "long unsigned int", "constants": {"HIGH": 1 << 40}},
        "wide_signed": {"size": 8, "base": "long int", "constants": {"LOW": -(1 << 40)}},
    }


def test_where_btf_never_tells_signs_a_value_below_zero_is_one() -> None:
    btf = BtfBuilder()
    enum(btf, "errors", 4, {"EINVAL": -22, "OK": 0})
    enum(btf, "counts", 4, {"ONE": 1})
    found = types(btf).enums
    assert found["errors"].constants == {"EINVAL": -22, "OK": 0}
    assert (found["errors"].base, found["counts"].base) == ("int", "unsigned int")


def test_variables_have_their_types() -> None:
    btf = BtfBuilder()
    number = integer(btf, "int", 4, encoding=1)
    btf.variable("cpu_number", number)
    btf.variable("cpu_number", btf.pointer(number))
    assert plain(types(btf).variables) == {"cpu_number": INT}


def test_a_pointer_to_itself_is_refused() -> None:
    btf = BtfBuilder()
    btf.pointer(1)
    struct(btf, "trap", 8, ("loop", 1, 0))
    with pytest.raises(CorruptTable, match="made of itself"):
        types(btf)


def test_a_typedef_of_itself_is_refused_even_under_a_bit_field() -> None:
    btf = BtfBuilder()
    btf.typedef("loop", 1)
    struct(btf, "trap", 8, ("bits", 1, 0, 3))
    with pytest.raises(CorruptTable, match="made of itself"):
        types(btf)


@pytest.mark.parametrize("links", [12, 17, 1000])
def test_a_chain_of_pointers_is_followed_up_to_a_bound(links: int) -> None:
    btf = BtfBuilder()
    last = integer(btf, "int", 4, encoding=1)
    names = []
    for _ in range(links):
        last = btf.pointer(last)
        names.append((f"m{last}", last, 0))
    struct(btf, "chain", 8, *names)
    if links == 12:
        assert len(types(btf).user_types["chain"].fields) == 12
    else:
        with pytest.raises(CorruptTable, match="made of"):
            types(btf)


def test_more_members_than_any_kernel_has_are_refused() -> None:
    largest = pack("<III", 0, 4 << 24 | 0xFFFF, 8) + bytes(12 * 0xFFFF)
    with pytest.raises(CorruptTable, match="members"):
        kernel_types(Btf(pack_btf(9 * largest, b"\0")))


def test_a_member_whose_type_does_not_exist_is_refused() -> None:
    btf = BtfBuilder()
    struct(btf, "broken", 8, ("ghost", 99, 0))
    with pytest.raises(CorruptTable, match="type 99 is none"):
        types(btf)


def test_a_member_that_is_a_variable_is_refused() -> None:
    btf = BtfBuilder()
    struct(btf, "broken", 8, ("odd", 2, 0))
    btf.variable("not_a_type", 0)
    with pytest.raises(CorruptTable, match="is no type but VAR"):
        types(btf)


def test_a_bit_field_of_pointers_is_refused() -> None:
    btf = BtfBuilder()
    struct(btf, "broken", 8, ("odd", btf.pointer(0), 0, 3))
    with pytest.raises(CorruptTable, match="no integer"):
        types(btf)
