"""ISF files of guests that lie about their types, and files that were damaged."""

import json
import struct
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import CorruptTable, QvmiError
from qvmi.symbols.btf import Btf
from qvmi.symbols.isf import isf_document
from qvmi.symbols.isf_file import IsfFile, IsfSymbols
from qvmi.symbols.isf_types import kernel_types
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.btf import pack_btf
from tests.unit.symbols.isf_reading import assert_fits_schema
from tests.unit.symbols.small_kernel import BANNER, LINK_START, SmallKernel, small_types

TYPES = small_types().build()
STRUCT, ENUM = 4 << 24, 6 << 24
MIB = 1 << 20

wrong_words = st.tuples(
    st.integers(6, len(TYPES) // 4 - 1),
    st.one_of(
        st.sampled_from([0, 1, 0xFFFF, STRUCT | 0xFFFF, 31 << 24, 0xFFFF_FFFF, 8 << 24, 1 << 31]),
        st.integers(0, 40),
        st.integers(0, 0xFFFF_FFFF),
    ),
)


@settings(max_examples=300)
@given(st.lists(wrong_words, min_size=1, max_size=10))
def test_damaged_types_make_a_whole_file_or_none(wrong: list[tuple[int, int]]) -> None:
    data = bytearray(TYPES)
    for place, word in wrong:
        struct.pack_into("<I", data, 4 * place, word)
    kernel = SmallKernel(btf=bytes(data))
    with suppress(CorruptTable):
        document = isf_document(kernel.live(), slide=kernel.slide, banner=BANNER)
        assert_fits_schema(msgspec.json.encode(document))


@pytest.mark.parametrize("kind", [STRUCT, ENUM])
def test_names_that_fill_gigabytes_are_given_up_within_bounds(kind: int) -> None:
    strings = b"\0" + (b"x" * 511 + b"\0") * 4
    words = 3 if kind == STRUCT else 2
    members = struct.pack(f"<{words}I", *([1] + [0] * (words - 1))) * 0xFFFF
    if kind == STRUCT:  # names of their own, for a struct that has one member twice has it once
        members = b"".join(struct.pack("<III", n % 512 + 1, 0, 0) for n in range(0xFFFF))
    types = (struct.pack("<III", 0, kind | 0xFFFF, 8) + members) * 7
    with cpu_seconds(60), peak_mib(400), suppress(CorruptTable):
        kernel_types(Btf(pack_btf(types, strings)))


def test_more_enumerators_than_any_kernel_has_are_refused() -> None:
    types = (struct.pack("<III", 0, ENUM | 0xFFFF, 4) + bytes(8 * 0xFFFF)) * 9
    with cpu_seconds(30), pytest.raises(CorruptTable, match="members of types"):
        kernel_types(Btf(pack_btf(types, b"\0")))


FILE = json.dumps(
    msgspec.to_builtins(
        isf_document(SmallKernel().live(), slide=SmallKernel().slide, banner=BANNER)
    )
).encode()

scars = st.tuples(st.integers(0, len(FILE) - 1), st.sampled_from(b'{}[]",:0-9eE.\\u\0\xff ntf'))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(scars, min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, wrong: list[tuple[int, int]]) -> None:
    data = bytearray(FILE)
    for place, byte in wrong:
        data[place] = byte
    path = tmp_path / "damaged.json"
    path.write_bytes(data)
    with suppress(QvmiError):
        file = IsfFile.read(path)
        symbols = IsfSymbols(file, slide=file.slide(Va(LINK_START)))
        symbols.find("init_task")
        symbols.nearest(Va(LINK_START + 8))
        for name in ("task_struct", "flags", "endless"):
            with suppress(CorruptTable):
                symbols.find_field(name, ["pid", "second", "low"])
                symbols.size_of(name)
