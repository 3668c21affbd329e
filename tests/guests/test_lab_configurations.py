"""Each machine a test can ask for is the machine it gets, by QEMU's word and by the guest's own."""

import re
from mmap import PROT_READ, mmap

import pytest

from tests.guests.lab import ARM64_KERNELS, Guest, GuestConfig, LabError
from tests.guests.lab.machine_config import MIB
from tests.guests.pool import GuestPool

LA57 = 1 << 12  # CR4, Intel SDM volume 3, section 2.5
FIRST_KERNEL_ADDRESS = 0xFFFFFFFF81000000  # where x86-64 Linux is linked to run


def _cr4(guest: Guest) -> int:
    found = re.search(r"CR4=([0-9a-f]{8})", guest.monitor.human("info registers"))
    assert found
    return int(found[1], 16)


def _ram_ranges(guest: Guest) -> list[tuple[int, int]]:
    lines = (line for line in guest.truth().lines["/proc/iomem"] if line.endswith(": System RAM"))
    pairs = (line.partition(" : ")[0].split("-") for line in lines)
    return [(int(first, 16), int(last, 16)) for first, last in pairs]


@pytest.mark.parametrize(("machine", "says"), [("q35", "Q35"), ("pc", "i440FX")])
def test_machine_type(guests: GuestPool, machine: str, says: str) -> None:
    config = GuestConfig(machine="pc" if machine == "pc" else "q35")
    guest = guests.restore(config)
    assert says.lower() in guest.monitor.human("info qtree").lower()
    assert guest.truth().reporter == 1


def test_number_of_cpus(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(cpus=4))
    assert guest.truth().cpus == 4


def test_memory_beyond_4_gib(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(memory_mib=5000))
    assert _ram_ranges(guest)[-1][1] > 1 << 32
    (ram,) = guest.ram_paths
    assert ram.stat().st_size == 5000 * MIB
    assert ram.stat().st_blocks * 512 < 1000 * MIB  # holes are kept


def test_five_level_paging_by_default_and_four_when_asked(guests: GuestPool) -> None:
    if guests.restore(GuestConfig()).accelerator != "tcg":
        pytest.skip("with KVM it is the host's processor that decides")
    assert _cr4(guests.restore(GuestConfig())) & LA57
    assert not _cr4(guests.restore(GuestConfig(cpu_flags="la57=off"))) & LA57


def test_kernel_arguments(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(append="nokaslr"))
    assert "nokaslr" in guest.truth().command_line
    assert guest.kallsyms().addresses["_text"] == FIRST_KERNEL_ADDRESS


def test_page_table_isolation_when_asked(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(append="pti=on"))
    vulnerability = "/sys/devices/system/cpu/vulnerabilities/meltdown"
    assert b"Mitigation: PTI" in guest.run(f"cat {vulnerability}; dmesg") or (
        b"page tables isolation: force enabled" in guest.run("dmesg")
    )


@pytest.mark.parametrize(
    ("config", "backends", "files"),
    [
        (GuestConfig(), {"ram0": "memory-backend-file"}, 1),
        (GuestConfig(ram="memfd"), {"ram0": "memory-backend-memfd"}, 0),
        (GuestConfig(ram="private"), {"pc.ram": "memory-backend-ram"}, 0),
        (
            GuestConfig(ram="numa", memory_mib=1024),
            {"ram0": "memory-backend-file", "ram1": "memory-backend-file"},
            2,
        ),
        (
            GuestConfig(ram="dimm", memory_mib=768),
            {"ram0": "memory-backend-file", "dimm0": "memory-backend-file"},
            2,
        ),
    ],
    ids=lambda value: value.ram if isinstance(value, GuestConfig) else None,
)
def test_memory_backends(
    guests: GuestPool, config: GuestConfig, backends: dict[str, str], files: int
) -> None:
    guest = guests.restore(config)
    objects = guest.monitor.execute("qom-list", path="/objects")
    kinds = {row["name"]: row["type"].removeprefix("child<").rstrip(">") for row in objects}
    assert {name: kind for name, kind in kinds.items() if kind.startswith("memory")} == backends
    assert [path.exists() for path in guest.ram_paths] == [True] * files
    size = sum(last + 1 - first for first, last in _ram_ranges(guest))
    assert size == pytest.approx(config.memory_mib * MIB, abs=4 * MIB)


def test_qmp_over_tcp_listens_on_the_loopback_alone(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(tcp=True))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", guest.qmp)
    assert guest.qmp.rpartition(":")[2] != "0"


def test_firmware_alone(guests: GuestPool) -> None:
    guest = guests.boot(GuestConfig(kernel=None))
    assert guest.monitor.running()
    with pytest.raises(LabError, match="firmware alone"):
        guests.restore(GuestConfig(kernel=None))


def test_a_machine_that_never_started_stands_at_the_reset_vector(guests: GuestPool) -> None:
    guest = guests.boot(GuestConfig(), paused=True)
    assert guest.monitor.execute("query-status")["status"] == "prelaunch"
    assert re.search(r"EIP=0000fff0|RIP=000000000000fff0", guest.monitor.human("info registers"))


def test_a_guest_can_be_had_long_before_it_is_ready(guests: GuestPool) -> None:
    guest = guests.boot(GuestConfig(), until="started")
    assert b'"kind":"end"' not in guest.console()
    assert b"Linux version" in guest.wait_for_console(b"Linux version")


def test_the_subjects_monitor_stays_free(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    rows = guest.monitor.execute("query-chardev")
    connected = {r["label"] for r in rows if not r["filename"].startswith("disconnected")}
    assert "monitor" in connected
    assert "qmp" not in connected


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(LabError, match="64 MiB are too little"):
        GuestConfig(memory_mib=64)


@pytest.mark.parametrize("kernel", ARM64_KERNELS)
def test_an_aarch64_machine_is_thawed_and_answers(guests: GuestPool, kernel: str) -> None:
    guest = guests.restore(GuestConfig(kernel=kernel, machine="virt"))
    assert guest.run("uname -m") == b"aarch64\n"
    truth = guest.truth()
    assert truth.release.startswith(kernel.removesuffix("-arm64").removesuffix("x"))
    assert truth.cpus == 2
    assert len(truth.modules) >= 5
    (first,) = _ram_ranges(guest)[:1]
    assert first[0] >= 0x40000000  # where virt's RAM begins, docs/system/arm/virt.rst


def test_an_aarch64_machine_has_as_wide_addresses_as_asked(guests: GuestPool) -> None:
    wide, narrow = (
        guests.restore(GuestConfig(kernel="6.12-arm64", machine="virt", cpu_flags=flags))
        for flags in ("", "lpa2=off")
    )
    assert [_unused_address_bits(guest) for guest in (wide, narrow)] == [64 - 52, 64 - 48]


def _unused_address_bits(guest: Guest) -> int:
    """This is TCR_EL1.T1SZ, as the kernel writes it into its note for crash dumps."""
    with guest.ram_paths[0].open("rb") as ram, mmap(ram.fileno(), 0, prot=PROT_READ) as memory:
        found = re.search(rb"NUMBER\(TCR_EL1_T1SZ\)=(0x[0-9a-f]+)\n", memory)
        assert found
        return int(found[1], 16)


@pytest.mark.parametrize(("kernel", "machine"), [("6.12-arm64", "q35"), ("6.12", "virt")])
def test_a_kernel_of_another_processor_is_refused(kernel: str, machine: str) -> None:
    with pytest.raises(LabError, match="cannot run the kernel"):
        GuestConfig(kernel=kernel, machine="virt" if machine == "virt" else "q35")
