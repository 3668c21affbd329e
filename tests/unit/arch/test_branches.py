"""The instructions that a kernel puts into its own code, as assemblers encode them."""

import pytest

from qvmi.arch.branches import (
    Instruction,
    Kind,
    aarch64_far_jump,
    aarch64_instruction,
    x86_64_instruction,
)

HERE = 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("0f1f440000", Instruction(Kind.NOTHING, 5)),
        ("6666666690", Instruction(Kind.NOTHING, 5)),
        ("9090909090", Instruction(Kind.NOTHING, 5)),
        ("6690", Instruction(Kind.NOTHING, 2)),
        ("6666 4831c0", Instruction(Kind.ZERO, 5)),
        ("6748 0fb93a", Instruction(Kind.WARNING, 5)),
        ("e8fbffffff", Instruction(Kind.CALL, 5, HERE)),
        ("e900000080", Instruction(Kind.JUMP, 5, HERE + 5 - 0x80000000)),
        ("ebfe", Instruction(Kind.JUMP, 2, HERE)),
        ("0f8400010000", Instruction(Kind.JUMP, 6, HERE + 0x106)),
        ("c3", Instruction(Kind.RETURN, 1)),
        ("cc", Instruction(Kind.TRAP, 1)),
        ("4889e5", None),
        ("0f0b", None),
    ],
)
def test_an_instruction_of_x86_64(code: str, expected: Instruction | None) -> None:
    assert x86_64_instruction(bytes.fromhex(code).ljust(8, b"\0"), HERE) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1f2003d5", Instruction(Kind.NOTHING, 4)),
        ("00000014", Instruction(Kind.JUMP, 4, HERE)),
        ("ffffff97", Instruction(Kind.CALL, 4, HERE - 4)),
        ("01000094", Instruction(Kind.CALL, 4, HERE + 4)),
        ("c0035fd6", Instruction(Kind.RETURN, 4)),
        ("800020d4", Instruction(Kind.TRAP, 4)),
        ("e0031faa", None),
    ],
)
def test_an_instruction_of_aarch64(code: str, expected: Instruction | None) -> None:
    assert aarch64_instruction(bytes.fromhex(code), HERE) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("10000090 10420191 00021fd6", HERE + 0x50),
        ("f0ffffb0 10020091 00021fd6", HERE - 0x3000 + 0x0),
        ("10000090 10420191 c0035fd6", None),
        ("11000090 10420191 00021fd6", None),
        ("10000090 1f2003d5 00021fd6", None),
    ],
)
def test_a_far_jump_of_aarch64(code: str, expected: int | None) -> None:
    assert aarch64_far_jump(bytes.fromhex(code), HERE) == expected
