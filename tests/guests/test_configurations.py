"""However a machine is built, the facts are right and the processes are those of /proc."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Process
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree, at_rest
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.x86_64_vcpus import x86_64_vcpus

ATTACHES: Final = 40
"""A timer interrupt takes a vCPU out of user mode for a moment; one attach in a few meets it."""
DEFAULT_LINK: Final = 0xFFFFFFFF81000000
"""Where these kernels' image starts without KASLR: ``_text`` in their System.map."""
UPDATED_S: Final = 1.0
"""The kernel's clock moves at ticks, which come late in a guest whose host is busy."""
HEXDUMP: Final = "busybox hexdump -ve '1/1 \"%02x\"' /sys/kernel/notes"
SHARED, MAPPING, PROCESS = "shared RAM file", "QEMU's shared mapping", "QEMU's process memory"


@dataclass(frozen=True, slots=True)
class Built:
    """This is a machine, and how its memory must be read."""

    config: GuestConfig
    memory: str = SHARED

    @property
    def isolated(self) -> bool:
        """Tell whether the kernel was told to isolate page tables."""
        return "pti=on" in self.config.append


def _built() -> Iterator[tuple[str, Built]]:
    """These are two machines for each kernel, as different as can be, and some more.

    What they leave out (q35, two vCPUs, a shared file, KASLR) is what the other tests look at.
    """
    for kernel in KERNELS:
        large = GuestConfig(kernel, cpus=4, memory_mib=3072, append="pti=on", ram="private")
        yield f"{kernel}-4cpus-3GiB-pti-private", Built(large, PROCESS)
        small = GuestConfig(
            kernel, "pc", cpus=1, cpu_flags="la57=off", append="nokaslr", ram="memfd"
        )
        yield f"{kernel}-pc-1cpu-4level-nokaslr-memfd", Built(small, MAPPING)
    above = GuestConfig("6.12", "pc", memory_mib=5120, cpu_flags="la57=off", append="pti=on")
    yield "6.12-pc-5GiB-4level-pti", Built(above)
    yield "6.1-numa", Built(GuestConfig("6.1", ram="numa"))
    yield "7.x-dimm-tcp", Built(GuestConfig("7.x", ram="dimm", tcp=True))


BUILT: Final = dict(_built())


@pytest.fixture(scope="module", params=BUILT)
def built(request: pytest.FixtureRequest) -> Built:
    return BUILT[request.param]


@pytest.fixture(scope="module")
def guest(lab: Lab, built: Built) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(built.config)


@asynchronous
async def test_process_table_equals_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        proof_count(assert_processes_agree(guest, machine.guest.processes))


@asynchronous
async def test_facts_are_those_of_the_guest(built: Built, guest: Guest) -> None:
    before = _uptime(guest)
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        facts = machine.guest.facts()
    assert facts.uptime_s is not None
    assert before - UPDATED_S < facts.uptime_s <= _uptime(guest) + 0.01
    assert facts.release == _file(guest, "/proc/sys/kernel/osrelease")
    assert facts.banner == _file(guest, "/proc/version")
    assert facts.build_id in guest.run(HEXDUMP).decode()
    assert facts.paging == _paging(guest)
    assert facts.page_table_isolation == built.isolated


@asynchronous
async def test_the_slide_is_the_guests_own(built: Built, guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        facts = machine.guest.facts()
    line = guest.run("busybox grep -m1 ' _text$' /proc/kallsyms")
    assert facts.kernel_base == int(line.split()[0], 16)
    assert facts.kernel_slide == facts.kernel_base - DEFAULT_LINK
    assert (facts.kernel_slide == 0) == ("nokaslr" in built.config.append)


@asynchronous
async def test_all_memory_is_read_in_the_fastest_way(
    built: Built, guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        used = [attempt.source for attempt in machine.memory_ladder if attempt.used]
        facts = await machine.facts()
    assert used == [built.memory]
    assert facts.ram_size == built.config.memory_mib << 20
    assert facts.vcpus == built.config.cpus


@pytest.mark.parametrize(
    "built", [name for name, one in BUILT.items() if one.isolated], indirect=True
)
@asynchronous
async def test_is_understood_from_user_mode(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    """All vCPUs run user code on the user half of the page tables, and nothing is known before."""
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rested = at_rest(machine.guest.processes())
    guest.start_spinning()
    try:
        seen = await _attach_in_user_mode(guest)
    finally:
        guest.stop_spinning()
    assert seen >= rested
    assert {row.name for row in seen - rested} == {f"spin-{n}" for n in range(guest.config.cpus)}
    proof_count(len(seen))


async def _attach_in_user_mode(guest: Guest) -> frozenset[Process]:
    for _ in range(ATTACHES):
        async with qvmi.attach(guest.qmp, use_cache=False) as machine:
            seen = at_rest(machine.guest.processes())
            vcpus = x86_64_vcpus(machine.view.vcpus)
            if all(vcpu.cpl == 3 and vcpu.cr3 & 0x1000 for vcpu in vcpus):
                return seen
    raise AssertionError(f"not one of {ATTACHES} attaches met all vCPUs in user mode")


def _file(guest: Guest, path: str) -> str:
    return guest.run(f"cat {path}").decode().rstrip("\n")


def _uptime(guest: Guest) -> float:
    return float(_file(guest, "/proc/uptime").split()[0])


def _paging(guest: Guest) -> str:
    """This is what CR4.LA57 says, bit 12, in QEMU's own words."""
    shown = re.search(r"CR4=([0-9a-f]+)", guest.monitor.human("info registers"))
    assert shown
    return "5-level" if int(shown[1], 16) & 1 << 12 else "4-level"
