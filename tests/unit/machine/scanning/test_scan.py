"""A scan finds the same however it is cut, ends when nobody listens, and says what it could not do."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import pytest
import yara_x

from qvmi.addr import Pa, PaRange
from qvmi.errors import ScanFailed, UnknownGuest, UsageError
from qvmi.machine.scanning import window_source
from qvmi.machine.scanning.scan import Scan, ScanProgress
from qvmi.machine.scanning.scan_rules import RuleSource, ScanRules
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.memory.page_copy import PageCopy
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import Provenance, Taken, View
from tests.asynchronous import asynchronous, until

Result = TypeVar("Result")

PAGE: Final = 4096
SIZE: Final = 64 * PAGE
UNOWNED: Final = Gap(
    "owners", None, "whose the memory is nobody can tell: no system is there for functions in 600 s"
)
RULES: Final = r"""
rule every {
  strings:
    $text = "needle"
    $word = "needle" fullword
    $wide = "needle" wide
    $run = /x{3,20000}y/
    $hex = { 00 00 01 02 }
  condition:
    any of them
}
"""


class Ram:
    """This is a machine without a system that anybody knows."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.view = View((), memory, Provenance(Taken.DUMP, 0.0))

    async def query(self, look: Callable[[LinuxGuest], Result], *, timeout_s: float) -> Result:
        raise UnknownGuest(f"no system is there for {type(look).__name__}s in {timeout_s:g} s")

    async def query_view(self, look: Callable[[View], Result]) -> Result:
        return await asyncio.to_thread(look, self.view)


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    """This is a sparse file of RAM with what is looked for at all kinds of borders."""
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place, data in (
            (3, b"needle"),
            (PAGE - 3, b"needle"),
            (5 * PAGE - 6, b"needle needle"),
            (20 * PAGE, b"\x01\x02" + b"needle"),  # behind a hole, to which its zeros belong
            (21 * PAGE - 2, b"aneedle"),
            (30 * PAGE + 7, "needle".encode("utf-16-le") * 900),
            (40 * PAGE - 5, b"x" * (2 * PAGE) + b"y"),
            (SIZE - 6, b"needle"),
        ):
            os.pwrite(file.fileno(), data, place)
        os.fsync(file.fileno())  # only then it is settled how much of the disk it takes
    return path


def mapped(path: Path) -> MappedRam:
    return MappedRam([RamFile(PaRange(Pa(0), Pa(SIZE)), path, 0)])


async def found(scan: Scan) -> list[tuple[str, int, int]]:
    return [(hit.pattern, hit.address, hit.length) async for hit in scan]


def by_yara(path: Path) -> list[tuple[str, int, int]]:
    """This is what YARA-X finds in the whole file."""
    scanner = yara_x.Scanner(yara_x.compile(RULES))
    return sorted(
        (pattern.identifier, match.offset, match.length)
        for rule in scanner.scan_file(str(path)).matching_rules
        for pattern in rule.patterns
        for match in pattern.matches
    )


@pytest.mark.parametrize("size", [PAGE, 3 * PAGE + 1, 1 << 24])
@pytest.mark.parametrize("way", ["in place", "copied"])
@asynchronous
async def test_what_is_found_does_not_depend_on_windows(
    ram: Path, monkeypatch: pytest.MonkeyPatch, size: int, way: str
) -> None:
    monkeypatch.setattr(window_source, "FILE_REQUEST", size)
    monkeypatch.setattr(window_source, "COPY_REQUEST", size)
    memory: PhysicalMemory = mapped(ram)
    if way == "copied":
        memory = PageCopy(memory, range(SIZE // PAGE))
    scan = Scan(Ram(memory), RULES, hits_per_rule=200_000)
    ours = await found(scan)
    assert sorted(ours) == by_yara(ram)
    assert {pattern for pattern, *_ in ours} == {"$text", "$word", "$wide", "$run", "$hex"}
    assert scan.gaps == [UNOWNED]


def blocks(path: Path) -> int:
    """This is how much of the host's memory or disk a file takes."""
    return path.stat().st_blocks


@asynchronous
async def test_a_hole_of_the_file_stays_one(ram: Path) -> None:
    before = blocks(ram)
    await found(Scan(Ram(mapped(ram)), RULES))
    assert blocks(ram) == before


@asynchronous
async def test_rules_that_are_wrong_are_refused_with_the_compilers_words(ram: Path) -> None:
    scan = Scan(Ram(mapped(ram)), ScanRules((RuleSource("rule x { condition: $a }", "my.yar"),)))
    with pytest.raises(UsageError, match=r"unknown pattern `\$a`\s+--> my\.yar:1:21"):
        await found(scan)


@asynchronous
@pytest.mark.parametrize("text", ["// no rule at all", "rule x { condition: filesize > 1 }"])
async def test_rules_that_search_for_nothing_are_refused(ram: Path, text: str) -> None:
    with pytest.raises(UsageError, match="no rule has a pattern"):
        await found(Scan(Ram(mapped(ram)), ScanRules((RuleSource(text, "my.yar"),))))


@asynchronous
async def test_without_yara_it_is_told_what_to_install(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yara_x", None)
    with pytest.raises(UsageError, match=r"pip install 'qvmi\[yara\]'"):
        await found(Scan(Ram(mapped(ram)), RULES))


@asynchronous
async def test_a_rule_has_no_more_hits_than_it_may_and_that_is_a_gap(ram: Path) -> None:
    scan = Scan(Ram(mapped(ram)), RULES, hits_per_rule=5)
    assert len(await found(scan)) == 5
    assert Gap("rule every", None, "it has more hits than are told") in scan.gaps


@asynchronous
async def test_a_rule_with_just_as_many_hits_as_it_may_has_no_gap(ram: Path) -> None:
    exact = 'rule every { strings: $a = "needle" condition: $a }'
    count = len(await found(Scan(Ram(mapped(ram)), exact)))
    scan = Scan(Ram(mapped(ram)), exact, hits_per_rule=count)
    assert len(await found(scan)) == count == 7
    assert scan.gaps == [UNOWNED]


@asynchronous
async def test_progress_ends_where_everything_was_scanned(ram: Path) -> None:
    told: list[ScanProgress] = []
    count = len(await found(Scan(Ram(mapped(ram)), RULES, on_progress=told.append)))
    assert told[0].scanned == 0
    assert told[-1].scanned == told[-1].size > 4 * PAGE
    assert told[-1].hits == count


def children() -> set[int]:
    """These are the processes that this one has started, and that have not ended."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


@asynchronous
async def test_who_stops_listening_ends_the_process_that_scans(ram: Path) -> None:
    before = children()
    async for _ in Scan(Ram(mapped(ram)), RULES):
        assert children() - before
        break
    await until(lambda: not children() - before)


@asynchronous
async def test_a_cancel_ends_a_scan_that_computes(tmp_path: Path) -> None:
    slow = (
        'rule slow { strings: $a = "none" condition: $a or'
        " for all i in (0..1000000000) : (uint8(i % 4096) < 256) }"
    )
    path = tmp_path / "ram"
    path.write_bytes(b"x" * SIZE)
    before = children()
    begun = asyncio.Event()
    scan = Scan(Ram(mapped(path)), slow, on_progress=lambda _: begun.set())
    task = asyncio.create_task(found(scan))
    await begun.wait()
    assert children() - before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children() - before


@asynchronous
async def test_a_window_that_takes_too_long_is_a_gap_and_the_rest_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.machine.scanning.scanner._WINDOW_TIMEOUT_S", 3)
    monkeypatch.setattr(window_source, "FILE_REQUEST", SIZE // 2)
    slow = (
        'rule a { strings: $a = "slow" $b = "needle" condition: $b or ($a and'
        " for all i in (0..1000000000000) : (uint8(i % 4096) < 256)) }"
    )
    path = tmp_path / "ram"
    path.write_bytes((b"slow".ljust(SIZE // 4, b"x")) + (b"y" * (3 * SIZE // 4 - 6)) + b"needle")
    scan = Scan(Ram(mapped(path)), slow)
    assert await found(scan) == [("$b", SIZE - 6, 6)]
    (gap,) = (gap for gap in scan.gaps if gap.structure == "scan")
    assert gap.reason == f"{SIZE // 2} bytes at 0x0 are not scanned: the rules took too long there"


@asynchronous
async def test_the_end_of_the_process_that_scans_is_told(ram: Path) -> None:
    before = children()

    def kill(progress: ScanProgress) -> None:
        if not progress.scanned:
            for pid in children() - before:
                os.kill(pid, 9)

    with pytest.raises(ScanFailed, match="has ended"):
        await found(Scan(Ram(mapped(ram)), RULES, on_progress=kill))


@asynchronous
async def test_what_was_cut_off_the_file_is_a_gap(ram: Path) -> None:
    memory = mapped(ram)
    scan = Scan(Ram(memory), RULES, on_progress=lambda _: os.truncate(ram, 5 * PAGE))
    await found(scan)
    cut = [gap.structure for gap in scan.gaps if "cut off" in gap.reason]
    assert cut
    assert set(cut) == {"scan"}
