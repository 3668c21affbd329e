"""What a guest has swapped out is told as missing, page by page, and is never taken for zeros."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.semantics.guest_os import MemoryMapping, Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.process_memory import Held
from tests.command_line import qvmi as command
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

PAGE: Final = 4096
FOLDER: Final = "/run/swapping"
READ_AGAIN: Final = 100
MAKING: Final = """
mkdir {0}; truncate -s 64M {0}/swap; mknod /dev/loop0 b 7 0; losetup /dev/loop0 {0}/swap; mkswap /dev/loop0
swapon /dev/loop0; echo 0 > /proc/sys/vm/page-cluster; mkdir {0}/groups; mount -t cgroup2 none {0}/groups
echo +memory > {0}/groups/cgroup.subtree_control; mkdir {0}/groups/one
cd {0}; (echo 0 > groups/one/cgroup.procs; dd if=/dev/urandom of=file bs=4k count=500)
cd {0}; cp file copy; sh -c 'echo $$ > groups/one/cgroup.procs; \
x=$(dd if=/dev/zero bs=1M count=4 | tr "\\0" x); \
echo $$ > pid; while :; do sleep 1000; done' >/dev/null 2>&1 & while ! [ -s {0}/pid ]; do sleep 0.2; done
for round in 1 2 3 4 5 6 7 8; do echo 1M > {0}/groups/one/memory.reclaim; done
dd if={0}/file of=/dev/null bs=4k count=100
"""
"""Commands; the last but one has the kernel swap out what it can. A line is a request of its own."""


@pytest.fixture(scope="module", params=["6.12", "7.x"])
def swapping(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest with a file and a process that are mostly swapped out."""
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        for line in MAKING.format(FOLDER).strip().split("\n"):
            guest.run(line)
        yield guest


def test_a_file_is_missing_where_it_is_swapped_out(swapping: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    options = ("--qmp", swapping.qmp, "--json")
    done = command(*options, "recover", f"{FOLDER}/file", "-o", str(path))
    assert done.returncode == 4
    missing = json.loads(done.stdout)["missing"]
    assert {part["reason"] for part in missing} == {"swapped out"}
    assert missing[0]["start"] >= READ_AGAIN * PAGE
    assert (
        command(*options, "recover", f"{FOLDER}/copy", "-o", str(tmp_path / "copy")).returncode == 0
    )
    true, found = (tmp_path / "copy").read_bytes(), bytearray(path.read_bytes())
    digest = swapping.run(f"sha256sum {FOLDER}/copy").split()[0].decode()
    assert hashlib.sha256(true).hexdigest() == digest
    gone = sum(part["end"] - part["start"] for part in missing)
    assert gone >= 100 * PAGE
    for part in missing:
        assert not any(found[part["start"] : part["end"]])
        found[part["start"] : part["end"]] = true[part["start"] : part["end"]]
    assert found == true


def pages_elsewhere(guest: LinuxGuest, process: Process, mapping: MemoryMapping) -> int:
    """This is how many pages of a mapping its content is told to lack, asked for bit by bit."""
    at, reasons = mapping.start, []
    while at < mapping.end:
        listing = guest.memory_content(process, mapping, at, 16 * PAGE)
        reasons += [gap.reason for gap in listing.gaps if "swapped out" in gap.reason]
        at = listing[-1].end
    return sum(int(reason.rpartition(": ")[2].split()[0]) for reason in reasons)


def test_of_a_process_as_much_is_missing_as_it_says_itself(swapping: Guest, tmp_path: Path) -> None:
    pid = int(swapping.run(f"cat {FOLDER}/pid"))
    with qvmi.attach_sync(swapping.qmp) as machine:
        guest = machine.guest
        process = next(row for row in guest.processes() if row.pid == pid)
        pieces = guest.process_memory(process).items
        elsewhere = sum(pages_elsewhere(guest, process, one) for one in guest.mappings(process))
    missing = sum(piece.end - piece.start for piece in pieces if piece.held is Held.MISSING)
    said = swapping.run(f"sed -n 's/VmSwap:\\(.*\\)kB/\\1/p' /proc/{pid}/status")
    assert missing == int(said) << 10 > 1 << 20
    assert elsewhere * PAGE == missing
    path = tmp_path / "core"
    done = command("--qmp", swapping.qmp, "--json", "dump", "--pid", str(pid), str(path))
    assert done.returncode == 4
    gaps = [gap for gap in json.loads(done.stdout)["gaps"] if gap["structure"] == "page tables"]
    assert sum(int(gap["reason"].split()[0]) for gap in gaps) == missing
    assert all("swapped out" in gap["reason"] for gap in gaps)
