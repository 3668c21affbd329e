"""The file of names: gdb says what is in it."""

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import CorruptTable
from qvmi.symbols import elf_symbols
from qvmi.symbols.elf_symbols import (
    ElfMachine,
    ElfRange,
    ElfSymbol,
    harmless_name,
    symbols_elf,
)

TEXT = ElfRange(".text", Va(0xFFFFFFFF81000000), Va(0xFFFFFFFF81001000), is_code=True)
DATA = ElfRange(".data", Va(0xFFFFFFFF81001000), Va(0xFFFFFFFF81003000), is_code=False)
MODULE = ElfRange("dummy", Va(0xFFFFFFFFC0000000), Va(0xFFFFFFFFC0004000), is_code=True)


def symbol(address: int, name: str, *, is_global: bool = True) -> ElfSymbol:
    return ElfSymbol(Va(address), name, is_global)


def gdb(folder: Path, elf: bytes, *commands: str) -> str:
    """This is what gdb prints, its complaints behind."""
    program = shutil.which("gdb")
    if program is None:
        pytest.skip("needs gdb")
    file = folder / "names"
    file.write_bytes(elf)
    options = [word for line in commands for word in ("-ex", line)]
    done = subprocess.run(
        [program, "-nx", "-q", "-batch", file, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


def test_gdb_finds_names_by_address_and_addresses_by_name(tmp_path: Path) -> None:
    elf = symbols_elf(
        [MODULE, DATA, TEXT],
        [
            symbol(0xFFFFFFFF81000100, "second", is_global=False),
            symbol(0xFFFFFFFF81000000, "first"),
            symbol(0xFFFFFFFF81001010, "variable"),
            symbol(0xFFFFFFFFC0000010, "in_module"),
            symbol(0x1F2C0, "per_cpu_offset_of_something"),
        ],
        machine=ElfMachine.X86_64,
    )
    asked = [0xFFFFFFFF810000FF, 0xFFFFFFFF81000100, 0xFFFFFFFF81000FFF, 0xFFFFFFFF81001018]
    asked += [0xFFFFFFFFC0000011, 0xFFFFFFFF81003000, 0x1F2C0]
    lines = gdb(
        tmp_path,
        elf,
        *(f"info symbol {address:#x}" for address in asked),
        "info address second",
        "info address variable",
        "show architecture",
    ).splitlines()
    assert lines[:7] == [
        "first + 255 in section .text",
        "second in section .text",
        "second + 3839 in section .text",
        "variable + 8 in section .data",
        "in_module + 1 in section dummy",
        "No symbol matches 0xffffffff81003000.",
        "No symbol matches 0x1f2c0.",
    ]
    assert '"second" is at 0xffffffff81000100 in a file compiled without' in lines[7]
    assert 'Symbol "variable" is at 0xffffffff81001010 in a file' in lines[8]
    assert "i386:x86-64" in lines[9]


def test_ranges_that_overlap_and_symbols_without_a_range_do_no_harm(tmp_path: Path) -> None:
    inside = ElfRange("liar", Va(TEXT.start + 16), Va(TEXT.end + 16), is_code=True)
    backwards = ElfRange("backwards", Va(MODULE.end), Va(MODULE.start), is_code=True)
    elf = symbols_elf(
        [TEXT, inside, backwards, MODULE],
        [symbol(TEXT.start, "first"), symbol(0, "null"), symbol((1 << 64) - 1, "last")],
        machine=ElfMachine.X86_64,
    )
    said = gdb(tmp_path, elf, f"info symbol {TEXT.start + 17:#x}", "info files")
    assert said.startswith("first + 17 in section .text\n")
    assert "liar" not in said
    assert "backwards" not in said


HOSTILE = [
    "\x1b[31mred",
    "\\x9b31m",
    "a\nshell id",
    "`id`",
    "$(id)",
    "x'; quit",
    "\u202eabc",
    "a b\tc",
    "",
    "__jit_debug_register_code",
    "__jit_debug_descriptor",
    "_r_debug",
    "_ovly_debug_event",
    "longjmp",
]


def test_hostile_names_come_out_of_gdb_as_words_without_meaning(tmp_path: Path) -> None:
    symbols = [symbol(TEXT.start + 16 * at, name) for at, name in enumerate(HOSTILE)]
    elf = symbols_elf([TEXT._replace(name="\x1b[31m")], symbols, machine=ElfMachine.X86_64)
    asked = [f"info symbol {one.address:#x}" for one in symbols]
    said = gdb(tmp_path, elf, *asked, "info functions -n", "maint print msymbols")
    assert not re.search(r"[^\n\t -~]", said)
    assert "guest___jit_debug_register_code in section" in said
    assert not re.search(r"(?<!guest_)(__jit_debug_|_r_debug|_ovly_|longjmp)", said)


@pytest.mark.parametrize(
    "name",
    ["vfs_read", "do_syscall_64.cold", "_RNvCs1_4core3fmt", "__pfx_x", "f.isra.0", "$d", "_text"],
)
def test_names_of_honest_kernels_are_unchanged(name: str) -> None:
    assert harmless_name(name) == name


@given(st.text())
def test_any_name_becomes_plain(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.$@]*", harmless_name(name))


def test_more_names_than_any_kernel_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf_symbols, "_MAX_NAMES", 100)
    with pytest.raises(CorruptTable, match="100 bytes"):
        symbols_elf([TEXT], [symbol(TEXT.start, "x" * 100)], machine=ElfMachine.X86_64)
    monkeypatch.setattr(elf_symbols, "_MAX_RANGES", 1)
    with pytest.raises(CorruptTable, match="too many"):
        symbols_elf([TEXT, DATA], [], machine=ElfMachine.X86_64)


def test_gdb_takes_a_hundred_thousand_names(tmp_path: Path) -> None:
    rng = random.Random(3)
    large = TEXT._replace(end=Va(TEXT.start + (64 << 20)))
    symbols = [symbol(large.start + rng.randrange(64 << 20), f"f{at}") for at in range(100_000)]
    said = gdb(
        tmp_path,
        symbols_elf([large], symbols, machine=ElfMachine.X86_64),
        *(f"info address {one.name}" for one in symbols[::5000]),
    )
    for one in symbols[::5000]:
        assert f'"{one.name}" is at {one.address:#x} in' in said
