"""BTF written by hand, as drgn then sees it; and BTF that lies."""

from collections.abc import Callable

import drgn
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qvmi.errors import QvmiError
from qvmi.semantics.drgn_bridge.types import BtfTypes
from qvmi.symbols.btf import Btf, BtfKind, BtfType
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.btf import BtfBuilder, Member


def program_with(builder: BtfBuilder, module: BtfBuilder | None = None) -> drgn.Program:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    types = BtfTypes(program, Btf(builder.build()))
    if module is not None:
        types = BtfTypes(program, Btf(module.build(), base=types.btf), types)

    def find(
        _: drgn.Program, kinds: drgn.TypeKindSet, name: str, __: str | None
    ) -> drgn.Type | None:
        return next((made for one in kinds if (made := types.find(one, name))), None)

    program.register_type_finder("test", find, enable_index=0)
    return program


def test_a_struct_has_its_members_where_btf_says() -> None:
    builder = BtfBuilder()
    number, char = builder.int_("unsigned int", 4), builder.int_("char", 1, signed=True)
    inner = builder.union("", 8, [Member("a", number), Member("b", builder.pointer(0))])
    text = builder.array(char, number, 16)
    builder.struct_(
        "thing", 28, [Member("name", text), Member("", inner, 16), Member("n", number, 24)]
    )
    thing = program_with(builder).type("struct thing")
    assert drgn.sizeof(thing) == 28
    assert [drgn.offsetof(thing, one) for one in ("name", "a", "b", "n")] == [0, 16, 16, 24]
    assert str(thing.member("name").type) == "char [16]"
    assert str(thing.member("b").type) == "void *"


def test_bit_fields_are_told_by_the_flag_and_by_narrow_integers() -> None:
    builder = BtfBuilder()
    number = builder.int_("unsigned int", 4)
    builder.struct_(
        "flagged",
        4,
        [Member("x", number, bit_offset=0, bits=3), Member("y", number, bit_offset=3, bits=29)],
    )
    narrow = builder.record(1, "unsigned int", 4, 5)
    builder.struct_("narrow", 4, [Member("z", narrow, bit_offset=8)])
    program = program_with(builder)
    flagged, old = program.type("struct flagged"), program.type("struct narrow")
    assert [(one.bit_offset, one.bit_field_size) for one in flagged.members or ()] == [
        (0, 3),
        (3, 29),
    ]
    assert [(one.bit_offset, one.bit_field_size) for one in old.members or ()] == [(8, 5)]


@pytest.mark.parametrize(
    ("add", "values"),
    [
        (lambda b: b.enum("e", {"A": 0, "B": -1}), {"A": 0, "B": -1}),
        (lambda b: (b.enum64("other", {"C": 1}), b.enum("e", {"B": -1}))[1], {"B": 0xFFFF_FFFF}),
        (lambda b: b.enum64("e", {"BIG": 1 << 40}), {"BIG": 1 << 40}),
    ],
    ids=["before 6.0 by their values", "since by a flag", "of 64 bits"],
)
def test_enumerations_have_their_values(
    add: Callable[[BtfBuilder], int], values: dict[str, int]
) -> None:
    builder = BtfBuilder()
    add(builder)
    found = program_with(builder).type("enum e").enumerators
    assert found is not None
    assert {one.name: one.value for one in found} == values


def test_what_is_declared_only_has_the_members_it_has_elsewhere() -> None:
    builder = BtfBuilder()
    number = builder.int_("int", 4, signed=True)
    builder.struct_("user", 16, [Member("to", builder.pointer(builder.forward("thing")))])
    builder.struct_("thing", 4, [Member("n", number)])
    builder.struct_("other", 8, [Member("to", builder.pointer(builder.forward("nowhere")))])
    program = program_with(builder)
    assert program.type("struct user").member("to").type.type.has_member("n")
    assert not program.type("struct other").member("to").type.type.is_complete()


def test_qualifiers_typedefs_and_functions_are_as_c_writes_them() -> None:
    builder = BtfBuilder()
    number = builder.int_("long unsigned int", 8)
    size = builder.typedef("size_t", number)
    text = builder.pointer(builder.const(builder.int_("char", 1)))
    prototype = builder.function_prototype(size, {"s": text, "": 0})
    builder.struct_("ops", 8, [Member("length", builder.pointer(prototype))])
    program = program_with(builder)
    assert str(program.type("struct ops").member("length").type) == "size_t (*)(const char *s, ...)"
    assert str(program.type("unsigned long")) == "unsigned long"
    assert program.type("size_t").type.size == 8


def test_a_modules_type_is_made_of_the_kernels() -> None:
    kernel = BtfBuilder()
    number = kernel.int_("int", 4, signed=True)
    kernel.struct_("base", 4, [Member("n", number)])
    module = BtfBuilder(base=kernel)
    module.struct_("derived", 12, [Member("base", 2), Member("more", module.pointer(2), 4)])
    derived = program_with(kernel, module).type("struct derived")
    assert str(derived.member("base").type.member("n").type) == "int"
    assert derived.member("more").type.type.has_member("n")


# ------------------------------------------------------------------------------------------- BTF that lies


def looped_typedefs(builder: BtfBuilder) -> None:
    builder.record(8, "e", 2)
    builder.record(8, "f", 1)


def a_struct_within_itself(builder: BtfBuilder) -> None:
    builder.struct_("e", 8, [Member("", 1), Member("n", 1)])


def two_structs_within_each_other(builder: BtfBuilder) -> None:
    builder.struct_("e", 8, [Member("", 2)])
    builder.struct_("f", 8, [Member("", 1)])


def members_without_end(builder: BtfBuilder) -> None:
    """Each level doubles what drgn would look at: 2 to the power of 15, twenty at once."""
    below = builder.struct_("", 8, [Member(f"m{one}", 0) for one in range(20)])
    for _ in range(13):
        below = builder.struct_("", 8, [Member("", below), Member("", below)])
    builder.struct_("e", 8, [Member("", below)])


def an_id_that_is_none(builder: BtfBuilder) -> None:
    builder.typedef("e", 12345)


def a_variable_for_a_type(builder: BtfBuilder) -> None:
    builder.variable("v", 0)
    builder.typedef("e", 1)


def an_array_of_nothing(builder: BtfBuilder) -> None:
    builder.typedef("e", builder.array(0, builder.int_("int", 4), 3))


def an_array_larger_than_any_memory(builder: BtfBuilder) -> None:
    number = builder.int_("int", 4)
    row = builder.array(number, number, 0xFFFF_FFFF)
    builder.typedef("e", builder.array(row, number, 0xFFFF_FFFF))


@pytest.mark.parametrize(
    "lie",
    [
        *(looped_typedefs, a_struct_within_itself, two_structs_within_each_other),
        *(members_without_end, an_id_that_is_none, a_variable_for_a_type, an_array_of_nothing),
        an_array_larger_than_any_memory,
    ],
    ids=lambda lie: lie.__name__,
)
def test_a_lie_is_an_error_of_ours_and_drgn_never_sees_it(
    lie: Callable[[BtfBuilder], None],
) -> None:
    builder = BtfBuilder()
    lie(builder)
    program = program_with(builder)
    is_struct = any((one.kind, one.name) == (BtfKind.STRUCT, "e") for one in records(builder))
    with cpu_seconds(10), pytest.raises(QvmiError):
        program.type("struct e" if is_struct else "e")


def records(builder: BtfBuilder) -> list[BtfType]:
    btf = Btf(builder.build())
    return [btf.type(one) for one in btf.own_ids()]


@example([(76, 0)])  # an array of void
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_any_bytes_changed_are_types_or_errors(changes: list[tuple[int, int]]) -> None:
    builder = BtfBuilder()
    number = builder.int_("int", 4, signed=True)
    inner = builder.union("", 8, [Member("a", number), Member("b", builder.pointer(0))])
    builder.struct_(
        "thing", 24, [Member("", inner), Member("c", builder.array(number, number, 4), 8)]
    )
    builder.enum("e", {"A": 0})
    builder.typedef("t", builder.const(builder.pointer(3)))
    data = bytearray(builder.build())
    for at, byte in changes:
        data[24 + at % (len(data) - 24)] = byte
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    with cpu_seconds(10):
        try:
            types = BtfTypes(program, Btf(bytes(data)))
            for kind, name in ((drgn.TypeKind.STRUCT, "thing"), (drgn.TypeKind.TYPEDEF, "t")):
                made = types.find(kind, name)
                for member in (made.members or ()) if made and kind is drgn.TypeKind.STRUCT else ():
                    str(member.type)
            types.find(drgn.TypeKind.ENUM, "e")
        except (QvmiError, ValueError):  # ValueError: drgn's own word about a bit-field too wide
            pass
