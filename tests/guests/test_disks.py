"""What is read of a running guest's disks is what the guest itself says is on them."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import qvmi
from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.errors import DiskRefused, NoSuchFile, PolicyDenied, UsageError
from qvmi.machine.devices.disks import Disk, DiskProvenance
from qvmi.machine.machine import Machine
from qvmi.policy import OBSERVE, Grant
from tests.asynchronous import asynchronous
from tests.command_line import DEADLINE_S, QVMI, environment, qvmi_document
from tests.command_line import qvmi as command
from tests.guests.disk_lab import DiskGuest, disk_guest
from tests.guests.lab import Lab
from tests.guests.pool import GuestPool
from tests.guests.test_documented_fields import check
from tests.unit.disk.images import file_system, ran

LOOKS: Final = 15
KNOWN: Final = os.urandom(5 * PAGE_SIZE + 123)
"""Content of a file that the guest reads and never writes."""
PLACE: Final = 2 * PAGE_SIZE
MAY: Final = OBSERVE.plus(Grant.DISK)
FORGET: Final = "echo 3 > /proc/sys/vm/drop_caches"
"""The guest lets go of what it has of files in memory."""
CHURN: Final = (
    "while [ -e /run/go ]; do for i in 1 2 3 4 5 6 7 8 9; do echo $i > /raw/churn/f$i;"
    " mv /raw/churn/f$i /raw/churn/g$i; rm -f /raw/churn/g$i; done; sync; done"
)
WRITING: Final = (
    "mkdir -p {0}/deep/er; dd if=/dev/urandom of={0}/deep/er/large bs=4k count=500;"
    "dd if=/dev/urandom of={0}/deep/holes bs=4k count=3 seek=200; ln -s deep/er/large {0}/link;"
    "printf secret > {0}/deep/small; chmod 640 {0}/deep/small; chown 7:8 {0}/deep/small;"
    "mknod {0}/deep/pipe p; sync; sync"
)
"""The first `sync` writes all, the second one lets QEMU tell a qcow2 image where it has put it."""
NAMES: Final = ("deep/er/large", "deep/holes", "deep/small")


@dataclass(frozen=True, slots=True)
class Running:
    """This is a guest with disks that it has written to.

    Args:
        vm: the guest.
        folder: of the images: ``base.raw``, ``top.qcow2`` over it, and ``alone.raw``.
    """

    vm: DiskGuest
    folder: Path

    @property
    def qmp(self) -> str:
        return self.vm.guest.qmp


@pytest.fixture(scope="module")
def running(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("disks")
    source = folder / "source"
    source.mkdir()
    (source / "from the base").write_text("below")
    (source / "known").write_bytes(KNOWN)
    base = file_system(folder / "base.raw", source, "-t", "ext4", size="32M")
    alone = file_system(folder / "alone.raw", None, "-t", "ext4", "-L", "alone", size="32M")
    top = folder / "top.qcow2"
    # The name of the base is relative to the image, not to anybody's working directory.
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", top)
    with ExitStack() as stack:
        vm = disk_guest(GuestPool(lab, stack))
        vm.plug_ext4(alone, "raw", "plain", "/raw")
        vm.plug_ext4(top, "qcow2", "layered", "/layered")
        vm.run("mkdir /raw/churn")
        for mounted in ("/raw", "/layered"):
            vm.run(WRITING.format(mounted))
        yield Running(vm, folder)


def told(vm: DiskGuest, mounted: str, name: str) -> tuple[str, ...]:
    """These are kind, mode, uid, gid, size, links and inode by the guest's own stat."""
    return tuple(vm.run(f"stat -c '%F|%a|%u|%g|%s|%h|%i' '{mounted}/{name}'").strip().split("|"))


@asynchronous
async def test_tells_which_image_belongs_to_which_disk(running: Running) -> None:
    async with qvmi.attach(running.qmp, policy=MAY) as machine:
        disks = {disk.id: disk for disk in await machine.disks.list()}
    folder = running.folder
    assert _images(disks["plain"]) == [(f"{folder}/alone.raw", "raw")]
    assert _images(disks["layered"]) == [
        (f"{folder}/top.qcow2", "qcow2"),
        (f"{folder}/base.raw", "raw"),
    ]
    assert {disk.size for disk in disks.values()} == {32 << 20}


def _images(disk: Disk) -> list[tuple[str, str]]:
    return [(image.path, image.format) for image in disk.images]


@pytest.mark.parametrize(("device", "mounted"), [("plain", "/raw"), ("layered", "/layered")])
@asynchronous
async def test_files_are_those_that_the_guest_has_written(
    running: Running, device: str, mounted: str
) -> None:
    sums = running.vm.run(f"cd {mounted}; sha256sum {' '.join(NAMES)}").split()
    async with (
        qvmi.attach(running.qmp, policy=MAY) as machine,
        machine.disks.open(device) as disk,
    ):
        for digest, name in zip(sums[::2], sums[1::2], strict=True):
            assert hashlib.sha256(await disk.read(name)).hexdigest() == digest
            (entry,) = await disk.stat(f"/{name}")
            assert told(running.vm, mounted, name) == (
                "regular file",
                f"{entry.mode:o}",
                *map(str, (entry.uid, entry.gid, entry.size, entry.links, entry.inode)),
            )
        assert await disk.read("link") == await disk.read("deep/er/large")
        listing = await disk.list("deep")
        assert isinstance(listing.provenance, DiskProvenance)
        assert listing.provenance.held_by_qemu
        assert not listing.gaps
    names = running.vm.run(f"ls -A {mounted}/deep").split()
    assert sorted(entry.path for entry in listing) == [f"/deep/{name}" for name in names]


@asynchronous
async def test_a_backing_image_is_seen_through_the_one_that_is_written(running: Running) -> None:
    async with (
        qvmi.attach(running.qmp, policy=MAY) as machine,
        machine.disks.open("layered") as disk,
    ):
        assert await disk.read("from the base") == b"below"


@asynchronous
async def test_what_the_guest_goes_on_changing_is_told_or_read_again(running: Running) -> None:
    running.vm.run("touch /run/go")
    running.vm.guest.run(f"({CHURN}) >/dev/null 2>&1 &")
    answers = 0
    try:
        async with (
            qvmi.attach(running.qmp, policy=MAY) as machine,
            machine.disks.open("plain") as disk,
        ):
            for _ in range(LOOKS):
                listing = await disk.list("churn")
                answers += all(entry.kind == "file" for entry in listing)
                # What nobody touches is seen whole beside it.
                assert await disk.read("deep/small") == b"secret"
                differences = await machine.disk_differences("/raw")
                assert differences.items == ()
    finally:
        running.vm.run("rm /run/go")
    assert answers == LOOKS


def held_by_us(images: set[int]) -> dict[int, int]:
    """These are the modes in which this process has files open, by inode, of those that are asked about."""
    modes = {}
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and link.stat().st_ino in images:
            info = Path(f"/proc/self/fdinfo/{link.name}").read_text().split()
            modes[link.stat().st_ino] = int(info[info.index("flags:") + 1], 8) & os.O_ACCMODE
    return modes


def locked_by_us(images: set[int]) -> list[str]:
    """These are the locks of this process on such files."""
    lines = Path("/proc/locks").read_text().splitlines()
    ours = [line for line in lines if str(os.getpid()) in line.split()]
    return [line for line in ours if int(line.split()[5].rpartition(":")[2]) in images]


@asynchronous
async def test_reading_takes_no_lock_and_opens_nothing_for_writing(running: Running) -> None:
    images = {(running.folder / name).stat().st_ino for name in ("base.raw", "top.qcow2")}
    async with (
        qvmi.attach(running.qmp, policy=MAY) as machine,
        machine.disks.open("layered") as disk,
    ):
        await disk.list("/")
        assert held_by_us(images) == dict.fromkeys(images, os.O_RDONLY)
        assert locked_by_us(images) == []
    assert held_by_us(images) == {}


@asynchronous
async def test_an_image_that_was_deleted_is_still_read(running: Running) -> None:
    image = file_system(running.folder / "gone.raw", None, "-t", "ext4", "-L", "gone", size="4M")
    file = {"driver": "file", "filename": str(image)}
    running.vm.plug({"driver": "raw", "node-name": "node-gone", "file": file}, "gone")
    image.unlink()
    image.write_bytes(b"somebody else's file of that name")
    async with qvmi.attach(running.qmp, policy=MAY) as machine, machine.disks.open("gone") as disk:
        (volume,) = await disk.volumes()
    assert volume.label == "gone"


def pages_with(machine: Machine, content: bytes) -> list[Pa]:
    """These are the pages of the guest's RAM that hold exactly this."""
    step = 1 << 20
    found = []
    for ram in machine.memory.ranges:
        for start in range(ram.start, ram.start + ram.size, step):
            data = machine.memory.read(Pa(start), min(step, ram.start + ram.size - start))
            at = data.find(content)
            while at >= 0:
                found.append(Pa(start + at))
                at = data.find(content, at + 1)
    return found


async def change_page(running: Running, content: bytes, change: bytes) -> None:
    """This writes to the one page that holds something, past the guest's kernel."""
    async with qvmi.attach(running.qmp, policy=MAY.plus(Grant.WRITE)) as machine:
        (page,) = pages_with(machine, content)
        await machine.write_physical(page, change)


def compared(running: Running) -> tuple[int, list[dict[str, object]]]:
    done = command("--qmp", running.qmp, "--json", "disk", "compare", "/layered")
    return done.returncode, json.loads(done.stdout)["items"]


def test_a_page_that_is_changed_in_memory_alone_is_a_finding(running: Running) -> None:
    digest = hashlib.sha256(KNOWN).hexdigest()
    assert running.vm.run("sha256sum /layered/known").split()[0] == digest
    assert compared(running) == (0, [])
    page = KNOWN[PLACE : PLACE + PAGE_SIZE]
    asyncio.run(change_page(running, page, b"tampered"))
    try:
        code, (row,) = compared(running)
        assert running.vm.run("sha256sum /layered/known").split()[0] != digest
    finally:
        asyncio.run(change_page(running, b"tampered" + page[8:], page[:8]))
    assert code == 1
    assert (row["path"], row["offset"], row["disk"]) == ("/layered/known", PLACE, "layered")
    assert row["stored"] == hashlib.sha256(page).hexdigest()
    assert row["cached"] == hashlib.sha256(b"tampered" + page[8:]).hexdigest()
    check("disk compare", [row])
    assert compared(running) == (0, [])


@asynchronous
async def test_a_page_that_its_kernel_has_forged_away_is_a_gap(running: Running) -> None:
    running.vm.run("sha256sum /layered/known")
    policy = MAY.plus(Grant.WRITE)
    async with qvmi.attach(running.qmp, policy=policy) as machine:
        (page,) = pages_with(machine, KNOWN[PLACE : PLACE + PAGE_SIZE])
        field = machine.symbols.find_field("page", ("mapping",))
        assert field is not None
        place = Va(machine.guest.memmap.page_at(page) + field.offset)
        mapping = machine.guest.kernel.space.read(place, 8)
        forged = int.from_bytes(mapping, "little") + PAGE_SIZE
        await machine.write_virtual(place, forged.to_bytes(8, "little"))
        try:
            listing = await machine.disk_differences("/layered/known")
        finally:
            await machine.write_virtual(place, mapping)
        (gap,) = listing.gaps
        assert "no page of this file" in gap.reason
        assert not (await machine.disk_differences("/layered/known")).gaps


def test_the_codepack_raises_and_clears_an_alert_with_both_views(
    running: Running, tmp_path: Path
) -> None:
    policy, audit = tmp_path / "policy.toml", tmp_path / "audit.jsonl"
    grants = "read-memory = true\ndisk = true\n"
    policy.write_text(f"version = 1\n[codepacks.disk-differences]\n{grants}")
    assert running.vm.run("sha256sum /layered/known")
    words = ("watch", "disk-differences", "--policy", str(policy), "--interval", "0.2", "--json")
    page = KNOWN[PLACE : PLACE + PAGE_SIZE]
    asyncio.run(change_page(running, page, b"tampered"))
    try:
        with watching(running, "--audit", str(audit), *words) as watch:
            alert = first_of_kind(watch, "alert")
            running.vm.run(FORGET)
            cleared = first_of_kind(watch, "cleared")
            watch.send_signal(signal.SIGINT)
            assert watch.wait(DEADLINE_S) == 1
    finally:
        running.vm.run(FORGET)
    assert alert["body"]["evidence_hash"] == cleared["body"]["evidence_hash"]
    memory, disk = (one["facts"] for one in alert["body"]["finding"]["evidence"])
    assert (memory["path"], memory["offset"]) == ("/layered/known", PLACE)
    assert memory["sha256"] == hashlib.sha256(b"tampered" + page[8:]).hexdigest()
    assert (disk["disk"], disk["sha256"]) == ("layered", hashlib.sha256(page).hexdigest())
    assert "codepack disk-differences: compare the disks with memory" in audit.read_text()


@contextmanager
def watching(running: Running, *words: str) -> Iterator["subprocess.Popen[str]"]:
    command_line = (*QVMI, "--qmp", running.qmp, *words)
    with subprocess.Popen(
        command_line, env=environment(), text=True, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_of_kind(watching: "subprocess.Popen[str]", kind: str) -> Any:  # noqa: ANN401 - JSON
    """This is the first message of a kind that a watch prints."""
    assert watching.stdout is not None
    for line in watching.stdout:
        message = json.loads(line)
        if message["kind"] == kind:
            return message
    raise AssertionError(f"the watch ended without {kind}")


async def refusal(machine: Machine, disk: str) -> str:
    with pytest.raises(DiskRefused) as refused:
        async with machine.disks.open(disk):
            pass
    return refused.value.reason


@asynchronous
async def test_what_is_in_no_plain_file_is_refused_with_the_reason(running: Running) -> None:
    null = {"driver": "null-co", "size": 1 << 20}
    running.vm.plug({"driver": "raw", "node-name": "n1", "file": null}, "null")
    part = {"driver": "file", "filename": str(running.folder / "base.raw"), "read-only": True}
    shifted = {"driver": "raw", "offset": 65536, "read-only": True, "file": part}
    running.vm.plug(shifted | {"node-name": "n2"}, "shifted")
    async with qvmi.attach(running.qmp, policy=MAY) as machine:
        assert "null-co" in await refusal(machine, "null")
        assert "offset" in await refusal(machine, "shifted")
        listed = await machine.disks.list()
        with pytest.raises(UsageError, match="there is no disk 'other'"):
            async with machine.disks.open("other"):
                pass
    assert {disk.id for disk in listed if disk.refused} >= {"null", "shifted"}


@asynchronous
async def test_a_session_without_the_grant_reads_no_disk(running: Running) -> None:
    async with qvmi.attach(running.qmp) as machine:
        with pytest.raises(PolicyDenied, match="disk"):
            async with machine.disks.open("plain"):
                pass


@asynchronous
async def test_a_missing_file_and_a_folder_are_no_files(running: Running) -> None:
    async with (
        qvmi.attach(running.qmp, policy=MAY) as machine,
        machine.disks.open("plain") as disk,
    ):
        with pytest.raises(NoSuchFile):
            await disk.read("nothing")
        with pytest.raises(UsageError):
            await disk.read("deep")


def test_the_command_lists_disks_and_volumes(running: Running) -> None:
    done = command("disk", "list", "--qmp", running.qmp, "--json", "--device", "plain")
    assert done.stderr == ""
    assert done.returncode == 0
    (row,) = json.loads(done.stdout)["items"]
    (volume,) = row["volumes"]
    assert (volume["label"], volume["filesystem"], volume["journal_pending"]) == (
        "alone",
        "ext4",
        True,
    )


def test_the_command_prints_a_file_as_it_is(running: Running, tmp_path: Path) -> None:
    where = ("--qmp", running.qmp, "disk", "cat", "--device", "layered")
    done = subprocess.run(
        (*QVMI, *where, "/deep/holes"),
        env=environment(),
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    digest = running.vm.run("sha256sum /layered/deep/holes").split()[0]
    assert hashlib.sha256(done.stdout).hexdigest() == digest
    into = command(*where, "/deep/holes", "-o", str(tmp_path / "holes"))
    assert into.returncode == 0
    assert hashlib.sha256((tmp_path / "holes").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ls", "/deep"), 0),
        (("stat", "/link", "--json"), 0),
        (("cat", "/nothing"), 4),
        (("cat", "/deep"), 2),
        (("cat", "/lost+found"), 2),
        (("cat",), 2),
        (("list", "/deep"), 2),
        (("ls", "/deep", "--volume", "3"), 4),
    ],
)
def test_the_exit_code_tells_how_it_went(
    running: Running, arguments: tuple[str, ...], code: int
) -> None:
    done = command("--qmp", running.qmp, "disk", *arguments, "--device", "plain")
    assert (done.returncode, done.stderr != "") == (code, code != 0)


@pytest.mark.parametrize(("action", "path"), [("list", ()), ("ls", ("/",))])
def test_the_fields_are_those_documented(
    running: Running, action: str, path: tuple[str, ...]
) -> None:
    where = ("--qmp", running.qmp, "disk", action, *path, "--device", "plain")
    check(f"disk {action}", qvmi_document(*where)["items"])


def test_without_a_device_several_disks_are_a_question(running: Running) -> None:
    done = command("--qmp", running.qmp, "disk", "ls")
    assert done.returncode == 2
    assert "plain, layered" in done.stderr
