"""Windows cover all that is in memory, each byte once, and see on both sides what a match may need."""

import random
from collections.abc import Callable
from typing import Final

from qvmi.addr import PAGE_SIZE, Va
from qvmi.codepacks.detectors.memory_window import cut
from qvmi.machine.scanning.scan import BEFORE, LONGEST
from qvmi.semantics.guest_os import MemoryRun
from qvmi.testing import FakeGuest, fake_mapping, fake_process

PLACE: Final = Va(0x7000_0000_0000)
LIMIT: Final = 128 << 10


def run(start: int, data: bytes) -> MemoryRun:
    return MemoryRun(Va(start), Va(start + len(data)), data)


def hole(start: int, size: int) -> MemoryRun:
    return MemoryRun(Va(start), Va(start + size), b"")


def test_small_holes_are_zeros_and_large_ones_end_a_window() -> None:
    first, second = run(PLACE, b"a" * 4096), run(PLACE + 8192, b"b" * 4096)
    far = run(PLACE + 65536, b"c" * 4096)
    between = (hole(first.end, 4096), hole(second.end, far.start - second.end))
    found = cut((first, between[0], second, between[1], far), PLACE, far.end)
    assert [one.pieces for one in found.windows] == [
        [first.data, 4096, second.data],
        [far.data],
    ]
    assert [(one.start, one.skip, one.own) for one in found.windows] == [
        (PLACE, 0, 12288),
        (far.start, 0, 4096),
    ]
    assert (found.following, found.size) == (far.end, 12288)


def test_what_goes_on_is_left_to_the_next_window_as_far_as_a_match_may_reach() -> None:
    found = cut((run(PLACE, bytes(LIMIT)),), PLACE, Va(PLACE + 10 * LIMIT))
    assert found.following == PLACE + LIMIT - LONGEST
    assert found.windows[0].own == LIMIT - LONGEST


def test_what_is_before_the_cursor_is_seen_and_not_told() -> None:
    (window,) = cut((run(PLACE, bytes(LIMIT)),), Va(PLACE + BEFORE), Va(PLACE + LIMIT)).windows
    assert (window.start, window.skip, window.own) == (PLACE + BEFORE, BEFORE, LIMIT - BEFORE)


def test_nothing_in_memory_is_passed_by() -> None:
    found = cut((hole(PLACE, LIMIT),), PLACE, Va(PLACE + 2 * LIMIT))
    assert (list(found.windows), found.following, found.size) == ([], PLACE + LIMIT, 0)


def test_every_byte_that_is_in_memory_is_in_just_one_window(
    proof_count: Callable[[int], None],
) -> None:
    drawn = random.Random(48)
    process = fake_process(7)
    for _ in range(30):
        guest = FakeGuest(processes=[process])
        at, want = int(PLACE), set()
        for _ in range(drawn.randrange(1, 12)):
            at += drawn.choice((0, 1, 2, 5, 40)) * PAGE_SIZE
            size = drawn.choice((1, 2, 15, 33, 70)) * PAGE_SIZE
            guest.memory[process.pid, Va(at)] = drawn.randbytes(size)
            want |= set(range(at, at + size, PAGE_SIZE))
            at += size
        mapping = fake_mapping(process, PLACE, end=Va(at + drawn.choice((0, 3)) * PAGE_SIZE))
        told: list[int] = []
        cursor = PLACE
        while cursor < mapping.end:
            start = Va(max(PLACE, cursor - BEFORE))
            runs = guest.memory_content(process, mapping, start, LIMIT).items
            parts = cut(runs, cursor, mapping.end)
            assert parts.following > cursor
            for window in parts.windows:
                assert window.start % PAGE_SIZE == 0
                told += range(window.start, window.start + window.own, PAGE_SIZE)
            cursor = parts.following
        assert len(told) == len(set(told))
        assert want <= set(told)
    proof_count(30)
