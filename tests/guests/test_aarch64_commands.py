"""What the command line, symbol files and dumps tell of an aarch64 guest.

The oracles are the guest's own note for crash dumps and /proc, and readelf.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.command_line import qvmi as run_qvmi
from tests.command_line import qvmi_document
from tests.guests.aarch64_guests import NARROW, RAM_START, aarch64, noted
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool

ADDRESSES = 1 << 64


@pytest.fixture(scope="module")
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


# ------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("guest", [aarch64()], indirect=True, ids=["6.12"])
def test_gdb_is_refused_before_the_guest_is_stopped(guest: Guest) -> None:
    guest.monitor.execute("query-status")
    guest.monitor.events.clear()
    done = run_qvmi("--qmp", guest.qmp, "gdb", "--batch", "-ex", "bt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "this one is aarch64" in done.stderr
    guest.monitor.execute("query-status")
    assert not guest.monitor.events


@pytest.mark.parametrize("guest", [aarch64()], indirect=True, ids=["6.12"])
def test_every_command_answers(guest: Guest) -> None:
    machine = ("--qmp", guest.qmp)
    facts = qvmi_document(*machine, "info")
    assert facts["guest"]["architecture"] == "aarch64"
    truth = guest.truth()
    assert {row["pid"] for row in qvmi_document(*machine, "ps")["items"]} >= {
        task.pid for task in truth.processes if not task.kernel_thread
    }
    assert [row["name"] for row in qvmi_document(*machine, "modules")["items"]] == [
        module.name for module in truth.modules
    ]
    for command in ("tree", "threads"):
        assert qvmi_document(*machine, command)["items"]
    vcpus = qvmi_document(*machine, "regs")["items"]
    assert [len(vcpu["x"]) for vcpu in vcpus] == [31, 31]
    at = guest.kallsyms().addresses["linux_banner"]
    assert qvmi_document(*machine, "symbol", "linux_banner")["address"] == at
    banner = bytes.fromhex(qvmi_document(*machine, "read", "linux_banner", "64")["data"])
    assert guest.run("cat /proc/version").startswith(banner[:60])
    way = qvmi_document(*machine, "translate", "linux_banner")
    assert way["pa"] == at - noted(guest)["NUMBER(kimage_voffset)"]
    shown = run_qvmi(*machine, "translate", "linux_banner").stdout
    assert re.search(r"level [23] descriptor .* r-- kernel", shown)
    assert run_qvmi(*machine, "watch", "--for", "1.5").returncode == 0


@pytest.mark.parametrize("guest", [aarch64()], indirect=True, ids=["6.12"])
def test_the_registers_are_shown_with_what_the_stub_adds(guest: Guest) -> None:
    done = run_qvmi("--qmp", guest.qmp, "regs")
    assert re.search(r"\bx30 +0x[0-9a-f]+ +cpsr +0x", done.stdout)
    assert re.search(r"\bttbr1_el1 +-", done.stdout)
    done = run_qvmi("--qmp", guest.qmp, "regs", "--system", "--vcpu", "1")
    assert re.search(r"\bttbr1_el1 +0x[0-9a-f]+", done.stdout)
    assert re.fullmatch(r"(qvmi: )?the guest stood still for \d+\.\d ms\n", done.stderr)
    assert guest.monitor.running()


# --------------------------------------------------------------------------------- symbol file, dump


@pytest.mark.parametrize(
    "guest", [aarch64(cpu_flags=NARROW), aarch64("7.x-arm64")], indirect=True, ids=["6.12", "7.x"]
)
def test_a_symbol_file_of_it_reads_another_boot_of_it(
    guests: GuestPool, guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "guest.json"
    assert run_qvmi("--qmp", guest.qmp, "isf", "-o", str(path)).returncode == 0
    symbols = json.loads(path.read_text())["symbols"]
    truth = guest.kallsyms().addresses
    slide = noted(guest)["KERNELOFFSET"]
    wanted = {name: at - slide for name, at in truth.items() if name in symbols}
    assert {name: symbols[name]["address"] % ADDRESSES for name in wanted} == wanted
    other = guests.restore(guest.config)
    machine = ("--qmp", other.qmp, "--isf", str(path), "--no-cache")
    rows = qvmi_document(*machine, "ps")["items"]
    tasks = {task.pid: task.ppid for task in other.truth().processes if not task.kernel_thread}
    assert {row["pid"]: row["ppid"] for row in rows if not row["kernel_thread"]} == tasks


def test_a_dump_is_an_aarch64_core_with_all_of_ram(guests: GuestPool, tmp_path: Path) -> None:
    guest = guests.restore(aarch64())
    path = tmp_path / "core"
    written = qvmi_document("--qmp", guest.qmp, "dump", str(path))
    assert written["provenance"]["pause_s"] > 0.0
    assert guest.monitor.running()
    read = subprocess.run(
        ["readelf", "-h", "-l", "-n", "-W", path], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"Machine: +AArch64", read)
    (load,) = re.findall(r"LOAD +(0x\w+) 0x\w+ (0x\w+) (0x\w+)", read)
    assert (int(load[1], 16), int(load[2], 16)) == (RAM_START, guest.config.memory_mib << 20)
    assert len(re.findall(r"CORE +0x00000188.*NT_PRSTATUS", read)) == 2
    assert "VMCOREINFO" in read
    banner = guest.kallsyms().addresses["linux_banner"] - noted(guest)["NUMBER(kimage_voffset)"]
    with path.open("rb") as core:
        core.seek(int(load[0], 16) + banner - RAM_START)
        assert guest.run("cat /proc/version").startswith(core.read(60))
