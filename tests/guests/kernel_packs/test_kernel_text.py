"""Code that is overwritten from outside, where nothing changes it and where the kernel does."""

import struct
from typing import Final

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.kernel_text import KernelText
from qvmi.semantics.code_baseline import CodeBaseline
from qvmi.semantics.linux.extable import KnownCode
from qvmi.semantics.linux.kernel_text import KernelText as LinuxKernelText
from qvmi.semantics.linux.list import ListWalk
from qvmi.semantics.linux.module import Modules
from qvmi.semantics.rows.modules import Module
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, X86_64, Tampered

SYSCALL: Final = ("__x64_sys_execve", "__arm64_sys_execve")
RET_X86_64: Final = b"\x31\xc0\xc3\x90"
RET_ARM64: Final = bytes.fromhex("e0031faac0035fd6")
"""mov x0, xzr; ret."""


def is_x86_64(kernel: Tampered) -> bool:
    return "x64_sys_call" in kernel.symbols


def call_to(kernel: Tampered, place: int, target: int) -> bytes:
    """This is the machine code of a call: E8 rel32, or BL."""
    if is_x86_64(kernel):
        return b"\xe8" + struct.pack("<i", target - place - 5)
    return struct.pack("<I", 0x94000000 | (target - place >> 2 & 0x3FFFFFF))


def seen(finding: Finding) -> tuple[str, str]:
    """These are the bytes before and after, as the evidence has them."""
    memory, before = finding.evidence
    return str(before.facts["bytes"]), str(memory.facts["bytes"])


@pytest.fixture
def pack(kernel: Tampered) -> KernelText:
    """This has had its first sight, and found nothing in it."""
    made = KernelText()
    assert kernel.look(made) == []
    assert kernel.look(made) == []
    return made


def test_instructions_in_the_midst_of_a_function_are_told_with_what_was_there(
    kernel: Tampered, pack: KernelText
) -> None:
    place = kernel.symbols["vfs_read"] + 64
    code = RET_X86_64 if is_x86_64(kernel) else RET_ARM64
    before = kernel.read(place, len(code))
    with kernel.altered(place, code):
        [finding] = kernel.look(pack)
        assert kernel.look(pack) == [finding]
    assert kernel.look(pack) == []
    memory, _ = finding.evidence
    assert memory.address is not None
    assert place <= memory.address < place + len(code)
    skipped = memory.address - place
    was, now = seen(finding)
    assert before[skipped:].hex(" ").startswith(was)
    assert code[skipped:].hex(" ").startswith(now)
    assert "vfs_read+0x4" in finding.claim
    assert (finding.severity, finding.technique, finding.settle_s) == ("critical", "T1014", 0)


def test_a_call_at_the_beginning_of_a_function_is_told_at_first_sight(kernel: Tampered) -> None:
    place = traced_at(kernel, kernel.symbols["vfs_read"])
    target = place + 0x7000000  # nobody's: behind the kernel's own image
    with kernel.altered(place, call_to(kernel, place, target)):
        [finding] = kernel.look(KernelText())
    assert finding.evidence[0].address == place
    assert finding.evidence[0].facts["site"] == "ftrace"
    assert f"a call to nobody's code at {target:#x}" in finding.claim
    assert finding.evidence[1].view == "what the kernel may put there"


def traced_at(kernel: Tampered, function: int) -> int:
    """This finds the instruction that ftrace patches, by what does nothing at a function's beginning."""
    nothing = b"\x0f\x1f\x44\x00\x00" if is_x86_64(kernel) else b"\x1f\x20\x03\xd5"
    code = kernel.read(function, 32)
    return function + code.index(nothing)


def test_a_jump_label_that_leads_elsewhere_is_told_at_first_sight(kernel: Tampered) -> None:
    table = kernel.symbols["__start___jump_table"]
    place = next(at for at in labels(kernel, table) if at % 4096 < 4000)
    size = 5 if is_x86_64(kernel) else 4
    code = call_to(kernel, place, kernel.symbols["vfs_read"])
    with kernel.altered(place, code[:size]):
        [finding] = kernel.look(KernelText())
    assert finding.evidence[0].address == place
    assert finding.evidence[0].facts["site"] == "jump label"


def labels(kernel: Tampered, table: int) -> list[int]:
    """These are places of jump labels that are off and as long as a jump: struct jump_entry.code."""
    rows = struct.iter_unpack("<iiq", kernel.read(table, 400 * 16))
    places = (table + 16 * index + code for index, (code, _, _) in enumerate(rows))
    nothing = b"\x0f\x1f\x44\x00\x00" if is_x86_64(kernel) else b"\x1f\x20\x03\xd5"
    return [at for at in places if kernel.read(at, len(nothing)) == nothing]


def test_a_place_in_code_that_a_module_has_freed_is_anybodys_now(kernel: Tampered) -> None:
    module = kernel.symbols["nf_tables:__this_module"]
    count = kernel.read(module + kernel.offset("module", "num_jump_entries"), 4)
    assert int.from_bytes(count, "little") > 0
    table = kernel.pointer(module + kernel.offset("module", "jump_entries"))
    elsewhere = kernel.symbols["veth_open"] + 32
    with kernel.altered(table, struct.pack("<i", elsewhere - table)):  # struct jump_entry.code
        assert kernel.look(KernelText()) == []


class Vanishing(Modules):
    """These are the modules of a kernel, one of which is listed only so many times."""

    left = 1

    def modules(self) -> ListWalk[Module]:
        walk = super().modules()
        self.left -= 1
        if self.left < 0:
            walk.rows = {at: row for at, row in walk.rows.items() if row.name != "veth"}
        return walk


def text_of(kernel: Tampered, modules: Modules | None = None) -> LinuxKernelText:
    its = kernel.linux.kernel
    modules = modules or Modules(its.space, its.symbols)
    return LinuxKernelText(its.space, its.symbols, modules, architecture=its.image.architecture)


def known(kernel: Tampered, kind: type[Modules] = Modules) -> KnownCode:
    its = kernel.linux.kernel
    return KnownCode(its.space, its.symbols, kind(its.space, its.symbols))


def test_a_module_that_goes_while_it_is_seen_first_is_not_remembered(kernel: Tampered) -> None:
    its, baseline = kernel.linux.kernel, CodeBaseline()
    text = text_of(kernel, Vanishing(its.space, its.symbols))
    assert not text.changes(baseline, known(kernel)).rows
    names = {name for name, _, _ in baseline.regions}
    assert "nf_tables" in names
    assert "veth" not in names


@pytest.mark.parametrize("kernel", X86_64, indirect=True)
def test_a_call_to_what_is_known_a_moment_later_is_told_once(kernel: Tampered) -> None:
    class Unknown(Vanishing):
        left = 0

    text, baseline = text_of(kernel), CodeBaseline()
    assert not text.changes(baseline, known(kernel)).rows
    place = kernel.symbols["ftrace_call"]
    with kernel.altered(place, call_to(kernel, place, kernel.symbols["veth_open"])):
        [row] = text.changes(baseline, known(kernel, Unknown)).rows.values()
        assert row.address == place
        assert not text.changes(baseline, known(kernel)).rows


def test_code_of_a_module_is_watched(kernel: Tampered, pack: KernelText) -> None:
    place = kernel.symbols["veth_open"] + 32
    code = RET_X86_64 if is_x86_64(kernel) else RET_ARM64
    with kernel.altered(place, code):
        [finding] = kernel.look(pack)
    assert finding.evidence[0].address is not None
    assert place <= finding.evidence[0].address < place + len(code)
    assert " of veth was overwritten" in finding.claim


def test_tables_of_functions_that_are_constant_are_watched(
    kernel: Tampered, pack: KernelText
) -> None:
    place = kernel.symbols["tcp4_seq_ops"] + kernel.offset("seq_operations", "show")
    with kernel.pointing((place, NOBODYS)):
        [finding] = kernel.look(pack)
    assert finding.evidence[0].address == place
    assert "tcp4_seq_ops+0x18 of constants" in finding.claim


def test_a_trap_where_the_kernel_changes_its_code_has_time_to_go(kernel: Tampered) -> None:
    place = traced_at(kernel, kernel.symbols["vfs_read"])
    trap = b"\xcc" if is_x86_64(kernel) else struct.pack("<I", 0xD4200000)
    pack = KernelText()
    with kernel.altered(place, trap):
        [finding] = kernel.look(pack)
    assert finding.settle_s > 1
    assert kernel.look(pack) == []


def test_a_kernel_that_was_overwritten_whole_is_told_by_a_bounded_number_of_findings(
    kernel: Tampered, pack: KernelText
) -> None:
    start = kernel.symbols["vfs_read"] & ~0xFFF
    with kernel.altered(start, b"\xa5\x5a\x00\xff" * 1024):
        found = [*pack.inspect(kernel.linux, kernel.memory)]
    assert 10 < len(found) <= 300
    assert kernel.look(pack) == []
