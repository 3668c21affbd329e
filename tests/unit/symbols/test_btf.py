"""BTF: every kind of record, a module's split BTF, and single structs found without the others."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import MAX_BTF_SIZE, Btf, BtfKind, BtfMember, btf_size
from tests.synthetic.btf import BtfBuilder, Member, pack_btf


def every_kind() -> tuple[Btf, dict[str, int]]:
    """One type of each kind, by the kind's name in the kernel."""
    b = BtfBuilder()
    ids = {"INT": b.int_("int", 4, signed=True)}
    ids["PTR"] = b.pointer(ids["INT"])
    ids["ARRAY"] = b.array(ids["INT"], ids["INT"], 7)
    ids["STRUCT"] = b.struct_("pair", 8, [Member("a", 1), Member("b", 1, 4)])
    ids["UNION"] = b.union("either", 4, [Member("x", 1), Member("y", 1)])
    ids["ENUM"] = b.enum("color", {"RED": 0, "BLUE": -1})
    ids["FWD"] = b.forward("elsewhere")
    ids["TYPEDEF"] = b.typedef("pair_t", ids["STRUCT"])
    ids["VOLATILE"] = b.volatile(ids["TYPEDEF"])
    ids["CONST"] = b.const(ids["VOLATILE"])
    ids["RESTRICT"] = b.restrict(ids["CONST"])
    ids["FUNC_PROTO"] = b.function_prototype(ids["INT"], {"first": 1, "second": 2})
    ids["FUNC"] = b.function("do_it", ids["FUNC_PROTO"])
    ids["VAR"] = b.variable("jiffies", ids["INT"])
    ids["DATASEC"] = b.data_section(".data..percpu", [(ids["VAR"], 0, 4), (ids["VAR"], 4, 4)])
    ids["FLOAT"] = b.float_("double", 8)
    ids["DECL_TAG"] = b.declaration_tag("user", ids["STRUCT"])
    ids["TYPE_TAG"] = b.type_tag("rcu", ids["RESTRICT"])
    ids["ENUM64"] = b.enum64("big", {"HUGE": 1 << 40})
    return Btf(b.build()), ids


KINDS = [kind.name for kind in BtfKind if kind is not BtfKind.VOID]


@pytest.mark.parametrize("name", KINDS)
def test_a_record_of_each_kind_is_told_from_the_next(name: str) -> None:
    btf, ids = every_kind()
    assert btf.type(ids[name]).kind is BtfKind[name]


def test_all_ids_are_counted_void_included() -> None:
    btf, ids = every_kind()
    assert (len(btf), btf.own_ids()) == (len(ids) + 1, range(1, len(ids) + 1))


def test_id_zero_is_void() -> None:
    btf, _ = every_kind()
    assert (btf.type(0).kind, btf.type(0).name) == (BtfKind.VOID, "void")


@pytest.mark.parametrize(
    ("kind", "name", "size_or_type", "vlen"),
    [
        ("STRUCT", "pair", 8, 2),
        ("UNION", "either", 4, 2),
        ("FWD", "elsewhere", 0, 0),
        ("FUNC_PROTO", "", 1, 2),
        ("DATASEC", ".data..percpu", 0, 2),
        ("FLOAT", "double", 8, 0),
        ("ENUM64", "big", 8, 1),
    ],
)
def test_the_common_words_are_read(kind: str, name: str, size_or_type: int, vlen: int) -> None:
    btf, ids = every_kind()
    record = btf.type(ids[kind])
    assert (record.name, record.size_or_type, record.vlen) == (name, size_or_type, vlen)


def test_the_words_behind_the_common_ones_are_read() -> None:
    btf, ids = every_kind()
    assert btf.words(btf.type(ids["ARRAY"]), 3) == (ids["INT"], ids["INT"], 7)
    assert btf.words(btf.type(ids["INT"]), 1) == (1 << 24 | 32,)


def test_members_have_their_places() -> None:
    btf, ids = every_kind()
    assert list(btf.members(btf.type(ids["STRUCT"]))) == [
        BtfMember("a", 1, 0, 0),
        BtfMember("b", 1, 32, 0),
    ]


def test_with_the_kind_flag_a_place_holds_the_width_of_a_bit_field() -> None:
    b = BtfBuilder()
    number = b.int_("unsigned int", 4)
    flags = [
        Member("jobctl", number),
        Member("low", number, bit_offset=32, bits=1),
        Member("high", number, bit_offset=40, bits=24),
    ]
    record = b.struct_("flags", 8, flags)
    btf = Btf(b.build())
    assert btf.type(record).kind_flag
    assert [(m.name, m.bit_offset, m.bit_size) for m in btf.members(btf.type(record))] == [
        ("jobctl", 0, 0),
        ("low", 32, 1),
        ("high", 40, 24),
    ]


def test_without_the_kind_flag_a_place_is_all_offset() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    record = b.struct_("large", 0x40_0000, [Member("far", number, 0x30_0000)])
    btf = Btf(b.build())
    assert next(btf.members(btf.type(record))).bit_offset == 0x30_0000 * 8


def test_the_type_behind_typedefs_and_qualifiers_is_found() -> None:
    btf, ids = every_kind()
    assert btf.resolved(ids["TYPE_TAG"]) == ids["STRUCT"]
    assert btf.resolved(ids["INT"]) == ids["INT"]


def test_names_that_are_no_utf_8_are_escaped() -> None:
    types = struct.pack("<III", 1, 7 << 24, 0)
    assert Btf(pack_btf(types, b"\0\xff\x1b\0")).type(1).name == "\\xff\x1b"


def test_a_longer_header_is_skipped() -> None:
    types = struct.pack("<III", 1, 7 << 24, 0)
    data = pack_btf(types, b"\0name\0", header_size=40)
    assert (btf_size(data), Btf(data).type(1).name) == (len(data), "name")


def test_bytes_behind_the_btf_are_left_alone() -> None:
    b = BtfBuilder()
    b.forward("one")
    assert len(Btf(b.build() + b"rubbish")) == 2


# -------------------------------------------------------------------------------------------- split BTF


def split() -> tuple[Btf, Btf, int, int]:
    """A kernel's BTF and a module's, with the ids of a kernel type and a module type."""
    kernel = BtfBuilder()
    number = kernel.int_("int", 4)
    shared = kernel.struct_("shared", 4, [Member("a", number)])
    module = BtfBuilder(kernel)
    own = module.struct_("own", 8, [Member("a", number), Member("only_here", shared, 4)])
    base = Btf(kernel.build())
    return base, Btf(module.build(), base), shared, own


def test_a_modules_ids_go_on_behind_the_kernels() -> None:
    base, module, _, own = split()
    assert module.own_ids() == range(len(base), own + 1)
    assert module.type(own).name == "own"


def test_a_module_names_types_and_strings_of_the_kernel() -> None:
    _, module, shared, own = split()
    members = list(module.members(module.type(own)))
    assert [one.name for one in members] == ["a", "only_here"]
    assert module.type(members[1].type_id).name == "shared"
    assert members[1].type_id == shared


def test_the_owner_of_a_type_is_who_defines_it() -> None:
    base, module, shared, own = split()
    assert (module.owner(shared), module.owner(own), base.owner(shared)) == (base, module, base)


def test_a_struct_named_by_a_string_of_the_kernel_is_found_in_the_module() -> None:
    kernel = BtfBuilder()
    kernel.forward("late")
    module = BtfBuilder(kernel)
    late = module.struct_("late", 4, [Member("x", 1)])
    base = Btf(kernel.build())
    found = Btf(module.build(), base).find_compound("late")
    assert found is not None
    assert found == Btf(module.build(), base).type(late)


# -------------------------------------------------------------------------------------- one struct alone


def test_a_struct_is_found_by_its_name_without_the_others() -> None:
    btf, ids = every_kind()
    assert btf.find_compound("pair") == btf.type(ids["STRUCT"])
    assert btf.find_compound("either") == btf.type(ids["UNION"])


@pytest.mark.parametrize(
    "name", ["elsewhere", "pair_t", "color", "int", "pai", "air", "", "RED", "nowhere"]
)
def test_what_is_no_struct_with_members_is_not_found(name: str) -> None:
    assert every_kind()[0].find_compound(name) is None


def test_an_anonymous_struct_is_not_found_by_the_empty_name() -> None:
    b = BtfBuilder()
    b.struct_("", 4, [Member("x", b.int_("int", 4))])
    assert Btf(b.build()).find_compound("") is None


def test_a_name_no_kernel_can_have_is_not_found() -> None:
    assert every_kind()[0].find_compound("\ud800") is None


def test_a_number_that_equals_the_names_offset_is_passed_over() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    wanted = b.string("wanted")
    b.array(wanted, number, 4 << 24 | 1)  # words: the offset, then what reads as a struct of one
    b.enum("decoy", {"wanted": 4 << 24 | 1})
    target = b.struct_("wanted", 4, [Member("x", number)])
    btf = Btf(b.build())
    assert btf.find_compound("wanted") == btf.type(target)


def test_a_struct_is_found_though_the_records_before_it_cannot_be_told_apart() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    b.record(25, "of_the_future", 0, 1, 2, 3)
    b.struct_("task_struct", 4, [Member("pid", number)])
    btf = Btf(b.build())
    found = btf.find_compound("task_struct")
    assert found is not None
    assert [one.name for one in btf.members(found)] == ["pid"]
    with pytest.raises(CorruptTable, match="unknown or cut-off type"):
        btf.type(3)


# ----------------------------------------------------------------------------------- what contradicts itself


@pytest.mark.parametrize("size", [0, 3, 23])
def test_a_header_cut_off_is_refused(size: int) -> None:
    with pytest.raises(CorruptTable, match="no BTF header"):
        btf_size(pack_btf(b"", b"\0")[:size])


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, MAX_BTF_SIZE, 0, 8),
        struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF
        ),
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 23, 0, 0, 0, 1),
    ],
)
def test_an_impossible_header_is_refused(header: bytes) -> None:
    with pytest.raises(CorruptTable, match="impossible header"):
        btf_size(header)


def test_big_endian_btf_is_refused() -> None:
    with pytest.raises(CorruptTable, match="no BTF header"):
        btf_size(struct.pack(">HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1))


@pytest.mark.parametrize("types_last", [True, False])
def test_sections_that_go_beyond_the_data_are_refused(*, types_last: bool) -> None:
    places = (1, 24, 0, 1) if types_last else (0, 24, 24, 100)
    data = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *places) + bytes(24)
    with pytest.raises(CorruptTable, match="needs"):
        Btf(data)


@pytest.mark.parametrize("type_id", [20, 1000, 1 << 32])
def test_an_id_that_no_record_has_is_refused(type_id: int) -> None:
    with pytest.raises(CorruptTable, match=f"no type with the id {type_id}"):
        every_kind()[0].type(type_id)


def test_a_record_cut_off_is_refused() -> None:
    types = struct.pack("<III", 0, 4 << 24 | 9, 8) + bytes(24)
    with pytest.raises(CorruptTable, match="too late"):
        len(Btf(pack_btf(types, b"\0")))


def test_members_cut_off_are_refused() -> None:
    types = struct.pack("<III", 1, 4 << 24 | 1, 8) + struct.pack("<III", 1, 1, 0)
    btf = Btf(pack_btf(types, b"\0s\0"))
    record = btf.type(1)._replace(vlen=2)
    with pytest.raises(CorruptTable, match="cut off"):
        list(btf.members(record))
    with pytest.raises(CorruptTable, match="cut off"):
        btf.words(record, 99)


def test_a_typedef_of_itself_is_refused() -> None:
    b = BtfBuilder()
    first = b.typedef("a", 2)
    b.typedef("b", 1)
    with pytest.raises(CorruptTable, match=f"type {first} is defined by itself"):
        Btf(b.build()).resolved(first)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_are_types_or_corrupt(types: bytes, strings: bytes) -> None:
    btf = Btf(pack_btf(types, strings))
    try:
        for type_id in range(len(btf)):
            record = btf.type(type_id)
            btf.resolved(type_id)
            if record.kind in {BtfKind.STRUCT, BtfKind.UNION}:
                list(btf.members(record))
    except CorruptTable:
        pass
