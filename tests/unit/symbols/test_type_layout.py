"""Single types are laid out as C does, whether the kernel's BTF or a file describes them."""

from pathlib import Path

import msgspec
import pytest

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf
from qvmi.symbols.btf_declarations import Declarations
from qvmi.symbols.btf_layout import BtfLayouts
from qvmi.symbols.isf import write_isf
from qvmi.symbols.isf_file import IsfFile
from qvmi.symbols.isf_layout import IsfLayouts
from qvmi.symbols.type_layout import (
    Constant,
    Hole,
    MemberLayout,
    TypeKind,
    TypeLayout,
    TypeName,
)
from tests.synthetic.btf import BtfBuilder, Member
from tests.unit.symbols.small_kernel import BANNER, SmallKernel, small_types

EITHER = MemberLayout(
    "",
    "union {...}",
    8,
    8,
    members=(
        MemberLayout(
            "",
            "struct {...}",
            8,
            8,
            members=(MemberLayout("first", "int", 8, 4), MemberLayout("second", "int", 12, 4)),
        ),
        MemberLayout("both", "int", 8, 4),
    ),
)


def _found(btf: BtfBuilder, name: str) -> TypeLayout:
    found = BtfLayouts(Btf(btf.build())).find(TypeName.of(name))
    assert found is not None
    return found


def test_members_have_offsets_sizes_and_types_and_anonymous_ones_their_own() -> None:
    layout = _found(small_types(), "task_struct")
    assert (layout.kind, layout.size) == (TypeKind.STRUCT, 64)
    assert layout.members == (
        MemberLayout("pid", "int", 0, 4),
        MemberLayout("__state", "unsigned int", 4, 4),
        EITHER,
        MemberLayout("comm", "char[16]", 16, 16),
        MemberLayout("parent", "task_t *", 32, 8),
    )
    assert layout.holes == (Hole(40, 24),)


def test_bit_fields_are_told_in_bits_and_cover_their_bytes() -> None:
    layout = _found(small_types(), "struct flags")
    assert [(one.name, one.offset, one.bit_offset, one.bit_size) for one in layout.members] == [
        ("low", 0, 0, 3),
        ("high", 0, 3, 7),
        ("last", 3, 7, 1),
    ]
    assert layout.holes == (Hole(2, 1),)


def test_a_typedef_says_what_it_stands_for_and_has_the_members_of_it() -> None:
    btf = BtfBuilder()
    number = btf.int_("int", 4, signed=True)
    btf.typedef("atomic_t", btf.struct_("", 4, [Member("counter", number)]))
    layout = _found(btf, "atomic_t")
    assert (layout.kind, layout.type, layout.size) == (TypeKind.TYPEDEF, "struct {...}", 4)
    assert layout.members == (MemberLayout("counter", "int", 0, 4),)


def test_an_enumeration_has_its_constants_also_below_zero() -> None:
    btf = BtfBuilder()
    btf.enum("colour", {"RED": 0, "GREEN": 5, "NONE": -1})
    layout = _found(btf, "enum colour")
    assert layout.constants == (Constant("RED", 0), Constant("GREEN", 5), Constant("NONE", -1))
    assert (layout.size, layout.holes) == (4, ())


def test_a_name_is_looked_for_as_what_it_is_said_to_be() -> None:
    btf = BtfBuilder()
    number = btf.int_("int", 4, signed=True)
    btf.enum("thing", {"THING": 1})
    btf.typedef("thing", number)
    btf.struct_("thing", 8, [Member("one", number)])
    layouts = BtfLayouts(Btf(btf.build()))
    kinds = [layouts.find(TypeName.of(name)) for name in ("thing", "enum thing", " struct  thing ")]
    assert [None if one is None else one.kind for one in kinds] == [
        TypeKind.STRUCT,
        TypeKind.ENUM,
        TypeKind.STRUCT,
    ]
    assert layouts.find(TypeName.of("union thing")) is None
    assert layouts.find(TypeName.of("")) is None


def test_types_are_written_as_in_c() -> None:
    btf = BtfBuilder()
    number, char = btf.int_("int", 4, signed=True), btf.int_("char", 1, signed=True)
    text = btf.pointer(btf.const(char))
    table = btf.array(btf.array(number, number, 3), number, 2)
    handler = btf.pointer(btf.function_prototype(0, {"text": text, "": 0}))
    nothing = btf.pointer(btf.function_prototype(number, {}))
    wanted = {
        text: "const char *",
        btf.const(text): "const char * const",
        btf.pointer(btf.const(text)): "const char * const *",
        table: "int[2][3]",
        btf.pointer(table): "int (*)[2][3]",
        handler: "void (*)(const char *, ...)",
        nothing: "int (*)(void)",
        btf.array(handler, number, 4): "void (*[4])(const char *, ...)",
        btf.pointer(btf.forward("elsewhere")): "struct elsewhere *",
        0: "void",
    }
    declarations = Declarations(Btf(btf.build()))
    declarations.begin()
    assert {type_id: declarations.of(type_id) for type_id in wanted} == wanted


def test_a_type_that_is_made_of_itself_is_refused() -> None:
    btf = BtfBuilder()
    btf.pointer(btf.next_id)
    btf.struct_("loop", 8, [Member("next", 1)])
    with pytest.raises(CorruptTable):
        _found(btf, "loop")
    with pytest.raises(CorruptTable, match="nest too deep"):
        _found(small_types(), "endless")


def test_a_file_describes_types_as_the_kernel_itself(tmp_path: Path) -> None:
    kernel = SmallKernel()
    write_isf(kernel.live(), tmp_path / "isf.json", slide=kernel.slide, banner=BANNER)
    file = IsfLayouts(IsfFile.read(tmp_path / "isf.json"))
    live = BtfLayouts(Btf(small_types().build()))
    for name in ("task_struct", "flags", "taint_flag", "rq", "int"):
        seen, wanted = file.find(TypeName.of(name)), live.find(TypeName.of(name))
        assert seen is not None
        assert wanted is not None
        assert (seen.size, seen.kind, seen.holes) == (wanted.size, wanted.kind, wanted.holes)
        assert [(one.name, one.offset, one.size, one.bit_size) for one in seen.members] == [
            (one.name, one.offset, one.size, one.bit_size) for one in wanted.members
        ]
    task = file.find(TypeName.of("task_struct"))
    assert task is not None
    assert task.members[2] == EITHER
    assert file.find(TypeName.of("union task_struct")) is None


def test_a_file_whose_types_are_made_of_themselves_is_refused(tmp_path: Path) -> None:
    inner = {"kind": "struct", "name": "unnamed_1"}
    loop = {"size": 8, "kind": "struct", "fields": {"again": {"offset": 0, "type": inner}}}
    path = tmp_path / "isf.json"
    path.write_bytes(msgspec.json.encode({"symbols": {}, "user_types": {"unnamed_1": loop}}))
    with pytest.raises(CorruptTable, match="nest too deep"):
        IsfLayouts(IsfFile.read_any(path)).find(TypeName.of("unnamed_1"))
