"""What a scan finds is what YARA-X finds in the same RAM, and whose it is the guest itself says."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
import yara_x

import qvmi
from qvmi import Gap, Machine
from qvmi.machine.scanning.scan import ScanArea
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.semantics.rows.scan import Owner, ScanHit
from tests.asynchronous import asynchronous
from tests.guests import marked
from tests.guests.aarch64_guests import RAM_START, aarch64
from tests.guests.lab import KERNELS, GuestConfig, Lab, Truth
from tests.guests.marked import Marked
from tests.guests.pool import GuestPool

PAGE: Final = 4096
CONFIGS: Final = [*(GuestConfig(kernel=kernel) for kernel in KERNELS), aarch64()]
STACK_END: Final = "9D 6E AC 57 00 00 00 00"
"""``STACK_END_MAGIC``, include/uapi/linux/magic.h: the lowest word of every task's kernel stack."""
RULES: Final = rb"""
rule marks {
  strings:
    $heap = "QVMARK-heap"
    $file = "QVMARK-once"
    $word = "QVMARK-many" fullword
    $name = /QVMARK-n[a-z]{1,20}/
  condition:
    any of them
}
rule kernel {
  strings:
    $banner = "Linux version "
    $wide = "Linux" wide
    $jump = { 4C 69 6E 75 78 20 [0-7] 20 }
    $code = { 0F 1F 44 00 00 5? 48 }
    $word = /init_task[^a-z]/
  condition:
    any of them
}
""".decode()


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def planted(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Marked]:
    """This is a guest of each kernel whose memory has known marks."""
    with ExitStack() as stack:
        yield marked.mark(GuestPool(lab, stack).restore(request.param))


async def hits_of(
    machine: Machine,
    *patterns: str,
    area: ScanArea | None = None,
    pid: int | None = None,
    hexes: tuple[str, ...] = (),
) -> list[ScanHit]:
    """These are the hits of some patterns, of one moment; that nothing is missing is checked."""
    rules = ScanRules.of_patterns(patterns, hexes)
    scan = machine.scan(rules, area=area, pid=pid, hits_per_rule=200_000)
    async with machine.paused():
        hits = [hit async for hit in scan]
    assert scan.gaps == []
    return hits


def owned(hits: list[ScanHit], kind: str, name: str = "") -> list[Owner]:
    """These are the owners of a kind, and of a name if one is given."""
    every = [owner for hit in hits for owner in hit.owners]
    return [one for one in every if one.kind == kind and name in {"", one.name}]


@asynchronous
async def test_finds_what_yara_finds_in_the_file_that_holds_the_ram(
    planted: Marked, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    start = RAM_START if planted.guest.config.machine == "virt" else 0
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine, machine.paused():
        scan = machine.scan(RULES, hits_per_rule=1_000_000)
        ours = [(hit.rule, hit.pattern, hit.address, hit.length) async for hit in scan]
        assert scan.gaps == []
        found = yara_x.Scanner(yara_x.compile(RULES)).scan(planted.guest.ram_paths[0].read_bytes())
    theirs = [
        (rule.identifier, pattern.identifier, start + match.offset, match.length)
        for rule in found.matching_rules
        for pattern in rule.patterns
        for match in pattern.matches
    ]
    assert len({(rule, pattern) for rule, pattern, *_ in theirs}) >= 6
    assert len(set(ours)) == len(ours)
    assert sorted(ours) == sorted(theirs)
    proof_count(len(ours))


@asynchronous
async def test_memory_of_a_process_is_seen_as_it_sees_it(
    planted: Marked, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    pid = planted.heap_pid
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, marked.HEAP, pid=pid)
        in_ram = await hits_of(machine, marked.HEAP)
    run = longest_run(hits, len(marked.HEAP))
    assert len(run) == marked.HEAP_COUNT
    for hit in (run[0], run[len(run) // 2], run[-1]):
        assert hit.virtual is not None
        assert planted.frame(pid, hit.virtual) == hit.address // PAGE
    assert run[0].virtual is not None
    assert planted.memory(pid, run[0].virtual, 33) == 3 * marked.HEAP.encode()
    # Some of them begin in one frame and end in another one, which only the process sees as one.
    crossing = [
        hit
        for hit, following in pairwise(run)
        if following.address - hit.address != len(marked.HEAP)
        and hit.address % PAGE > PAGE - len(marked.HEAP)
    ]
    assert crossing
    # In RAM there is another page behind the first part, which may happen to hold the same.
    assert {hit.address for hit in crossing} - {hit.address for hit in in_ram}
    proof_count(len(run))


def longest_run(hits: list[ScanHit], size: int) -> list[ScanHit]:
    """These are the most hits of one size that follow each other without a byte in between."""
    runs: list[list[ScanHit]] = [[]]
    for hit in hits:
        assert hit.virtual is not None
        if runs[-1] and runs[-1][-1].virtual != hit.virtual - size:
            runs.append([])
        runs[-1].append(hit)
    return max(runs, key=len)


@asynchronous
async def test_a_hit_in_ram_is_of_the_process_that_has_it(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, marked.HEAP, marked.ARGUMENT)
    heap = [hit for hit in hits if owned([hit], "process", "awk")]
    assert len(heap) >= marked.HEAP_COUNT * 0.99
    for hit in heap[:: len(heap) // 3]:
        (owner,) = hit.owners
        assert owner.pid == planted.heap_pid
        assert owner.address is not None
        assert planted.frame(planted.heap_pid, owner.address) == hit.address // PAGE
        assert owner.address % PAGE == hit.address % PAGE
    owners = {owner.pid: owner for owner in owned(hits, "process", "sh")}
    argument = owners[planted.argument_pid]
    assert argument.address is not None
    size = len(marked.ARGUMENT)
    told = planted.memory(planted.argument_pid, argument.address, size)
    assert told == marked.ARGUMENT.encode()


@asynchronous
async def test_a_hit_in_a_file_is_of_its_path_and_offset(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        for area in (ScanArea.RAM, ScanArea.PAGE_CACHE):
            hits = await hits_of(machine, marked.FILE, area=area)
            owners = owned(hits, "page cache", marked.PATH)
            assert [owner.offset for owner in owners] == [marked.FILE_OFFSET]
        hits = await hits_of(machine, marked.MANY, area=ScanArea.PAGE_CACHE)
    offsets = [owner.offset for owner in owned(hits, "page cache", "/run/many")]
    # In the order of the file no mark is cut in two, wherever its pages are.
    assert offsets == [number * len(marked.MANY) for number in range(marked.HEAP_COUNT)]


@asynchronous
async def test_a_shared_page_is_of_everybody_who_has_it(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, "/proc/sys/kernel/hotplug", area=ScanArea.PAGE_CACHE)
    (hit,) = (hit for hit in hits if owned([hit], "page cache", "/init"))
    maps = planted.guest.proc("maps")
    mapping = {pid for pid, text in maps.items() if " /init\n" in text}
    assert {owner.pid for owner in owned([hit], "process")} <= mapping
    assert {1} <= {owner.pid for owner in owned([hit], "process")}
    for owner in owned([hit], "process")[:3]:
        assert owner.pid is not None
        assert owner.address is not None
        assert planted.frame(owner.pid, owner.address) == hit.address // PAGE


@asynchronous
async def test_a_hit_in_the_kernel_is_of_its_symbol(planted: Marked, profiles: Path) -> None:
    addresses = planted.guest.kallsyms().addresses
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        for area in (ScanArea.RAM, ScanArea.KERNEL):
            hits = await hits_of(machine, "Linux version ", area=area)
            (banner,) = owned(hits, "kernel", "linux_banner")
            assert (banner.address, banner.offset) == (addresses["linux_banner"], 0)


@asynchronous
async def test_a_hit_in_a_slab_is_of_its_cache_and_object(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, marked.NAME, area=ScanArea.KERNEL)
        owners = owned(hits, "slab", "dentry")
        field = machine.symbols.find_field("dentry", ("d_iname", "d_shortname"))
        assert field is not None
        assert {owner.offset for owner in owners} == {field.offset}
    caches = {line.split()[0] for line in planted.guest.run("cat /proc/slabinfo").splitlines()[2:]}
    assert {owner.name.encode() for owner in owned(hits, "slab")} <= caches


@asynchronous
async def test_every_task_has_its_kernel_stack(
    planted: Marked, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        before = _with_stacks(planted.guest.truth())
        hits = await hits_of(machine, area=ScanArea.KERNEL, hexes=(STACK_END,))
        after = _with_stacks(planted.guest.truth())
    stacks = [owner for hit in hits if hit.address % PAGE == 0 for owner in owned([hit], "stack")]
    found = {owner.pid for owner in stacks}
    assert before & after <= found
    proof_count(len(found))


def _with_stacks(truth: Truth) -> set[int]:
    """These are the tasks that have a kernel stack: it is taken from those that are dead."""
    return {task.pid for task in truth.tasks if task.state not in {"Z", "X"}}


@asynchronous
async def test_a_hit_in_a_module_is_of_that_module(planted: Marked, profiles: Path) -> None:
    names = [module.name for module in planted.guest.truth().modules][:5]
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, *names, area=ScanArea.KERNEL)
    # A module's own name is in the struct module, which is in its data.
    assert set(names) <= {owner.name for owner in owned(hits, "module")}


@asynchronous
async def test_what_was_given_back_is_of_nobody(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        hits = await hits_of(machine, marked.FREED)
        cached = await hits_of(machine, marked.FREED, area=ScanArea.PAGE_CACHE)
    # One that goes on in the next page of RAM may begin with what the last file has of another mark.
    whole = [hit for hit in hits if hit.address % PAGE <= PAGE - len(marked.FREED)]
    nobody = owned(whole, "free") + owned(whole, "free or kernel")
    assert len(nobody) > marked.FREED_COUNT // 2
    assert not owned(whole, "page cache")
    assert cached == []


@asynchronous
async def test_an_area_has_nothing_of_another(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        kernel = await hits_of(machine, marked.HEAP, marked.FILE, area=ScanArea.KERNEL)
        cached = await hits_of(machine, marked.HEAP, marked.NAME, area=ScanArea.PAGE_CACHE)
        process = await hits_of(machine, marked.FILE, marked.MANY, pid=planted.heap_pid)
    assert not owned(kernel, "process")
    assert not owned(kernel, "page cache")
    assert (cached, process) == ([], [])


@pytest.mark.parametrize("planted", [GuestConfig(kernel="6.12")], indirect=True)
@asynchronous
async def test_a_dump_has_the_same_hits_with_the_same_owners(
    planted: Marked, profiles: Path, tmp_path: Path
) -> None:
    rules = ScanRules.of_patterns((marked.FILE, marked.NAME, marked.ARGUMENT, "Linux version "))
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine, machine.paused():
        live = [hit async for hit in machine.scan(rules)]
        await machine.dump(tmp_path / "core")
    with qvmi.open_dump(tmp_path / "core", cache=profiles) as dump:
        scan = dump.scan(rules)
        assert [hit async for hit in scan] == live
        assert (scan.gaps, scan.provenance.taken) == ([], "dump")
    assert len(live) >= 6


@asynchronous
async def test_more_hits_than_are_told_are_a_gap(planted: Marked, profiles: Path) -> None:
    async with qvmi.attach(planted.guest.qmp, cache=profiles) as machine:
        scan = machine.scan('rule every { strings: $a = "A" condition: $a }', hits_per_rule=100)
        hits = [hit async for hit in scan]
    assert len(hits) == 100
    assert scan.gaps == [Gap("rule every", None, "it has more hits than are told")]
