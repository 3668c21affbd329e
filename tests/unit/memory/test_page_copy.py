"""A record of what was read, and a copy of it."""

import random

import pytest

from qvmi.addr import Pa
from qvmi.errors import MemoryFault
from qvmi.memory.page_copy import PageCopy, RecordedMemory
from tests.synthetic.ram import Ram

PAGE = 4096
PAGES = 8


@pytest.fixture
def ram() -> Ram:
    ram = Ram(PAGES * PAGE)
    ram.write(0, random.Random(1).randbytes(PAGES * PAGE))
    return ram


@pytest.mark.parametrize(
    ("pa", "size", "pages"),
    [
        (0, 1, {0}),
        (PAGE - 1, 1, {0}),
        (PAGE - 1, 2, {0, 1}),
        (PAGE, PAGE, {1}),
        (PAGE + 1, 2 * PAGE, {1, 2, 3}),
    ],
)
def test_the_pages_of_each_read_are_recorded(ram: Ram, pa: int, size: int, pages: set[int]) -> None:
    recorded = RecordedMemory(ram)
    assert recorded.read(Pa(pa), size) == ram.read(Pa(pa), size)
    assert recorded.pages == pages


def test_what_cannot_be_read_is_not_recorded(ram: Ram) -> None:
    recorded = RecordedMemory(ram)
    with pytest.raises(MemoryFault):
        recorded.read(Pa(PAGES * PAGE - 1), 2)
    assert not recorded.pages


def test_a_copy_stays_as_it_was(ram: Ram) -> None:
    before = ram.read(Pa(0), PAGES * PAGE)
    copy = PageCopy(ram, [5, 1, 2, 2, 3])
    ram.write(0, bytes(PAGES * PAGE))
    for pa in range(PAGE, 4 * PAGE, 512):
        for size in (0, 1, 512, PAGE, 4 * PAGE - pa):
            end = min(pa + size, 4 * PAGE)
            assert copy.read(Pa(pa), end - pa) == before[pa:end]
    assert copy.read(Pa(5 * PAGE), PAGE) == before[5 * PAGE : 6 * PAGE]
    assert not copy.missing


@pytest.mark.parametrize(
    ("pa", "size", "missing"),
    [
        (0, 1, {0}),
        (4 * PAGE - 1, 2, {4}),
        (0, 2 * PAGE, {0}),
        (PAGE, 5 * PAGE, {4}),
        (6 * PAGE, 2 * PAGE, {6, 7}),
    ],
)
def test_what_it_lacks_is_read_live_and_told(
    ram: Ram, pa: int, size: int, missing: set[int]
) -> None:
    copy = PageCopy(ram, [1, 2, 3, 5])
    ram.write(0, bytes(PAGES * PAGE))
    assert copy.read(Pa(pa), size)[-1:] in {b"\0", copy.read(Pa(pa + size - 1), 1)}
    assert copy.missing >= missing
    assert copy.missing <= missing | {(pa + size - 1) // PAGE}


def test_an_empty_copy_lacks_everything(ram: Ram) -> None:
    copy = PageCopy(ram, [])
    assert copy.read(Pa(0), 2) == ram.read(Pa(0), 2)
    assert copy.missing == {0}


@pytest.mark.parametrize(("pa", "size"), [(PAGES * PAGE, 1), (0, PAGES * PAGE + 1), (PAGE, -1)])
def test_what_nobody_can_read_is_a_fault(ram: Ram, pa: int, size: int) -> None:
    copy = PageCopy(ram, [0, 1])
    with pytest.raises(MemoryFault):
        copy.read(Pa(pa), size)


def test_a_page_that_is_no_ram_cannot_be_copied(ram: Ram) -> None:
    with pytest.raises(MemoryFault):
        PageCopy(ram, [PAGES])
