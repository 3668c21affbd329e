"""Entries of the tables of system calls, changed from outside and told by their addresses."""

from typing import Final, NamedTuple

import pytest

from qvmi.codepacks.system_calls import SystemCalls
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, Tampered


class Numbers(NamedTuple):
    """System calls by the numbers that programs use: uapi/asm/unistd_64.h, uapi/asm-generic/unistd.h."""

    prefix: str
    read: int
    write: int
    execve: int
    unused: int


X86_64: Final = Numbers("__x64_sys_", 0, 1, 59, 183)
ARM64: Final = Numbers("__arm64_sys_", 63, 64, 221, 244)
WORD: Final = 8


class Scene(NamedTuple):
    kernel: Tampered
    numbers: Numbers

    def entry(self, number: int) -> int:
        return self.kernel.symbols["sys_call_table"] + number * WORD

    def handler(self, name: str) -> int:
        return self.kernel.symbols[self.numbers.prefix + name]


@pytest.fixture
def scene(kernel: Tampered) -> Scene:
    return Scene(kernel, X86_64 if X86_64.prefix + "read" in kernel.symbols else ARM64)


def test_a_kernel_as_it_was_made_has_no_finding(scene: Scene) -> None:
    pack = SystemCalls()
    assert scene.kernel.look(pack) == []
    assert scene.kernel.look(pack) == []
    listed = scene.kernel.linux.system_calls()
    execve = listed.find(place=scene.entry(scene.numbers.execve))
    assert execve is not None
    assert (execve.target, execve.owner) == (scene.handler("execve"), "kernel")
    assert len(listed) > 400


def test_an_entry_that_leads_out_of_the_kernel_is_told_with_both_addresses(scene: Scene) -> None:
    pack, place = SystemCalls(), scene.entry(scene.numbers.execve)
    assert scene.kernel.look(pack) == []
    with scene.kernel.pointing((place, NOBODYS)):
        [finding] = scene.kernel.look(pack)
    assert scene.kernel.look(pack) == []
    table, code, right = finding.evidence
    assert (table.view, table.present, table.address) == ("sys_call_table", True, place)
    assert table.facts["entry"] == f"{scene.numbers.execve} execve"
    assert (code.present, code.address) == (False, NOBODYS)
    assert table.data == NOBODYS.to_bytes(8, "little").hex()
    assert (right.present, right.address) == (False, place)
    assert right.data == scene.handler("execve").to_bytes(8, "little").hex()
    assert (finding.severity, finding.technique) == ("critical", "T1014")


def test_two_entries_that_were_swapped_are_told_each(scene: Scene) -> None:
    read, write = scene.handler("read"), scene.handler("write")
    numbers = scene.numbers
    places = {scene.entry(numbers.read): write, scene.entry(numbers.write): read}
    with scene.kernel.pointing(*places.items()):
        found = scene.kernel.look(SystemCalls())
    assert {one.evidence[0].address: one.evidence[1].address for one in found} == places
    assert all("it is not " in one.claim for one in found)


def test_a_call_that_no_kernel_has_is_told_when_it_gets_a_handler(scene: Scene) -> None:
    place = scene.entry(scene.numbers.unused)
    with scene.kernel.pointing((place, scene.handler("read"))):
        [finding] = scene.kernel.look(SystemCalls())
    assert (finding.evidence[0].address, finding.evidence[1].present) == (place, True)
    assert f"{scene.numbers.prefix}ni_syscall" in finding.claim


def test_an_entry_into_the_midst_of_its_handler_is_told(scene: Scene) -> None:
    place = scene.entry(scene.numbers.read)
    with scene.kernel.pointing((place, scene.handler("read") + 4)):
        [finding] = scene.kernel.look(SystemCalls())
    assert f"leads to {scene.numbers.prefix}read+0x4" in finding.claim


def test_a_table_full_of_lies_costs_a_finding_an_entry(scene: Scene) -> None:
    start = scene.entry(0)
    size = 4096 - start % 4096
    with scene.kernel.altered(start, b"\xa5" * size):
        found = scene.kernel.look(SystemCalls())
    assert min(400, size // WORD) <= len(found) <= size // WORD
