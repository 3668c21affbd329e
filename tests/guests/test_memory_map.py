"""The memory map of real machines, against where a byte really lies in QEMU's files."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.addr import Pa
from qvmi.memory.memory_map import MemoryRegion
from qvmi.qmp import commands
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.x86_64_vcpus import x86_64_vcpu

MIB, GIB = 1 << 20, 1 << 30
FIRMWARE_S = 60
FILE = "memory-backend-file,share=on,mem-path="
MEMFD = "memory-backend-memfd,share=on"

# Sizes as QEMU's own query-memory-size-summary must tell them: base memory and plugged memory.
MACHINES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "default RAM": (("-machine", "q35", "-m", "256"), 256 * MIB, 0),
    "pc with default RAM": (("-machine", "pc", "-m", "3584"), 3584 * MIB, 0),
    "q35 with a file above 4 GiB": (
        ("-machine", "q35,memory-backend=m", "-m", "5G", "-object", FILE + "{}/m,id=m,size=5G"),
        5 * GIB,
        0,
    ),
    "pc with a file above 4 GiB": (
        ("-machine", "pc,memory-backend=m", "-m", "5G", "-object", FILE + "{}/m,id=m,size=5G"),
        5 * GIB,
        0,
    ),
    "memfd": (
        ("-machine", "q35,memory-backend=m", "-m", "1G", "-object", MEMFD + ",id=m,size=1G"),
        GIB,
        0,
    ),
    "two nodes and DIMMs": (
        (
            *("-machine", "q35,nvdimm=on", "-m", "4G,slots=4,maxmem=16G", "-smp", "2"),
            *("-object", FILE + "{}/a,id=a,size=3G", "-numa", "node,memdev=a,cpus=0"),
            *("-object", MEMFD + ",id=b,size=1G", "-numa", "node,memdev=b,cpus=1"),
            *("-object", FILE + "{}/c,id=c,size=1G", "-device", "pc-dimm,memdev=c,id=stick"),
            *("-object", "memory-backend-ram,id=d,size=256M", "-device", "pc-dimm,memdev=d"),
            *("-object", FILE + "{}/e,id=e,size=128M", "-device", "nvdimm,memdev=e,id=nv"),
        ),
        4 * GIB,
        GIB + 256 * MIB + 128 * MIB,
    ),
}


@contextmanager
def machine_of(name: str) -> Iterator[BareQemu]:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        arguments = [argument.replace("{}", folder) for argument in MACHINES[name][0]]
        with bare_qemu("-S", *arguments) as machine:
            yield machine


def write_to_file(region: MemoryRegion, pa: Pa, value: int) -> None:
    """Write a byte to the file where the map says that the guest has this address."""
    backend = region.backend
    assert backend is not None
    assert backend.mem_path is not None
    with Path(backend.mem_path).open("r+b") as file:
        file.seek(pa - region.start + region.file_offset)
        file.write(bytes([value]))


def read_by_qemu(machine: BareQemu, pa: Pa) -> int:
    """Read a byte of the guest's memory through QEMU."""
    return int(machine.monitor.human(f"xp /1xb {pa:#x}").split()[-1], 16)


@pytest.mark.parametrize("name", MACHINES)
@asynchronous
async def test_regions_and_backends_have_the_sizes_that_qemu_tells(name: str) -> None:
    _, base, plugged = MACHINES[name]
    with machine_of(name) as machine:
        async with await QmpSession.connect(machine.qmp) as session:
            memory_map = await commands.memory_map(session)
        summary = machine.monitor.execute("query-memory-size-summary")
    assert sum(backend.size for backend in memory_map.backends) == base + plugged
    assert summary["base-memory"] == base
    assert summary.get("plugged-memory", 0) == plugged
    # A guest without shadowed RAM loses at most the hole of 256 KiB to the PC's firmware.
    missing = base + plugged - sum(region.size for region in memory_map.ram)
    assert 0 <= missing <= 256 << 10


@pytest.mark.parametrize("name", [name for name in MACHINES if "{}" in "".join(MACHINES[name][0])])
@asynchronous
async def test_a_byte_is_in_the_file_where_the_map_says(name: str) -> None:
    with machine_of(name) as machine:
        async with await QmpSession.connect(machine.qmp) as session:
            memory_map = await commands.memory_map(session)
        in_files = [r for r in memory_map.ram if r.backend is not None and r.backend.mem_path]
        places = [(r, Pa(pa)) for r in in_files for pa in (r.start, r.end - 1)]
        for value, (region, pa) in enumerate(places, start=1):
            write_to_file(region, pa, value)
        assert [read_by_qemu(machine, pa) for _, pa in places] == list(range(1, len(places) + 1))


@pytest.mark.parametrize("name", MACHINES)
@asynchronous
async def test_every_region_starts_where_qemu_has_its_host_memory(name: str) -> None:
    with machine_of(name) as machine:
        async with await QmpSession.connect(machine.qmp) as session:
            memory_map = await commands.memory_map(session)
            bases: dict[str, set[int]] = {}
            for region in memory_map.ram:
                assert region.backend is not None
                host = await commands.gpa2hva(session, region.start)
                bases.setdefault(region.backend.path, set()).add(host - region.offset)
    # All pieces of a backend, less their offsets in it, are one mapping of QEMU's.
    assert all(len(found) == 1 for found in bases.values())


@asynchronous
async def test_what_the_firmware_write_protects_is_rom_in_the_same_backend() -> None:
    with bare_qemu("-machine", "pc", "-m", "128") as machine:
        async with await QmpSession.connect(machine.qmp) as session:
            async with asyncio.timeout(FIRMWARE_S):
                while not x86_64_vcpu((await commands.registers(session))[0]).halted:
                    pass
            memory_map = await commands.memory_map(session)
    region = memory_map.region_at(Pa(0xF0000))
    assert region is not None
    assert (region.kind, region.offset) == ("rom", 0xF0000)
    assert region.backend == memory_map.ram[0].backend
