"""Code that is overwritten from outside, where nothing changes it and where the kernel does."""

import struct

import pytest

from qvmi.codepacks.detectors.kernel_text import KernelText
from qvmi.semantics.code_baseline import CodeBaseline
from qvmi.semantics.linux.hooks.extable import KnownCode
from qvmi.semantics.linux.hooks.kernel_text import KernelText as LinuxKernelText
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.modules import Module
from tests.guests.kernel_packs.patched_code import call_to, is_x86_64, traced_at
from tests.guests.kernel_packs.tampered_kernel import X86_64, Tampered


@pytest.fixture
def pack(kernel: Tampered) -> KernelText:
    """This has had its first sight, and found nothing in it."""
    made = KernelText()
    assert kernel.look(made) == []
    assert kernel.look(made) == []
    return made


def test_a_trap_where_the_kernel_changes_its_code_has_time_to_go(kernel: Tampered) -> None:
    place = traced_at(kernel, kernel.symbols["vfs_read"])
    trap = b"\xcc" if is_x86_64(kernel) else struct.pack("<I", 0xD4200000)
    pack = KernelText()
    with kernel.altered(place, trap):
        [finding] = kernel.look(pack)
    assert finding.settle_s > 1
    assert kernel.look(pack) == []


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


def test_a_kernel_that_was_overwritten_whole_is_told_by_a_bounded_number_of_findings(
    kernel: Tampered, pack: KernelText
) -> None:
    start = kernel.symbols["vfs_read"] & ~0xFFF
    with kernel.altered(start, b"\xa5\x5a\x00\xff" * 1024):
        found = [*pack.inspect(kernel.linux, kernel.memory)]
    assert 10 < len(found) <= 300
    assert kernel.look(pack) == []
