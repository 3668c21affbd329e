"""Code that is overwritten from outside, where nothing changes it and where the kernel does."""

import struct

import pytest

from qvmi.codepacks.kernel_text import KernelText
from tests.guests.kernel_packs.patched_code import is_x86_64, traced_at
from tests.guests.kernel_packs.tampered_kernel import Tampered


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


def test_a_kernel_that_was_overwritten_whole_is_told_by_a_bounded_number_of_findings(
    kernel: Tampered, pack: KernelText
) -> None:
    start = kernel.symbols["vfs_read"] & ~0xFFF
    with kernel.altered(start, b"\xa5\x5a\x00\xff" * 1024):
        found = [*pack.inspect(kernel.linux, kernel.memory)]
    assert 10 < len(found) <= 200
    assert kernel.look(pack) == []
