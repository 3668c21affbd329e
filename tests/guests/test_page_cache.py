"""The files that are in memory, and their content, are those that the guest has put there itself."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.errors import GuestError
from qvmi.semantics.guest_os import CachedFile
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.cached_files import MissingRange
from tests.asynchronous import asynchronous
from tests.command_line import qvmi as command
from tests.guests.aarch64_guests import aarch64
from tests.guests.cached_lab import FOLDER, TOLD, Told
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

PAGE: Final = 4096
LOOKS: Final = 50
IN_MEMORY: Final = ("large", "holes", "deep/er/small", "huge/folios", "image", "upper/one")
CONFIGS: Final = [
    *(GuestConfig(kernel=kernel) for kernel in KERNELS),
    *(aarch64(kernel) for kernel in ("6.12-arm64", "7.x-arm64")),
]


@dataclass(frozen=True, slots=True)
class Cached:
    """This is a guest that has made its files."""

    guest: Guest
    told: Told


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def cached(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Cached]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(request.param)
        yield Cached(guest, Told.by(guest))


def listed(guest: LinuxGuest, under: str = FOLDER) -> dict[str, CachedFile]:
    """These are the files in memory, by their path below the folder; none of them may be lacking."""
    listing = guest.cached_files(under)
    assert not listing.gaps
    return {file.path.removeprefix(f"{FOLDER}/"): file for file in listing}


def content(guest: LinuxGuest, file: CachedFile) -> tuple[bytes, tuple[MissingRange, ...]]:
    """This is what is in memory of a file, zeros in between, and what is missing."""
    found = bytearray(file.size)

    def write(offset: int, data: bytes) -> None:
        found[offset : offset + len(data)] = data

    listing = guest.recover(file, write)
    assert not listing.gaps
    assert len(found) == file.size
    return bytes(found), listing.items


@asynchronous
async def test_files_in_memory_alone_have_the_pages_that_the_guest_counts(
    cached: Cached, profiles: Path
) -> None:
    told = cached.told
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        files = await machine.query(listed)
    for name in IN_MEMORY:
        file = files[name]
        assert (file.size, file.inode) == (told.sizes[name], told.inodes[name]), name
        assert (file.cached, file.dirty) == (told.pages[name], 0), name
        assert (file.filesystem, file.deleted) == ("tmpfs", False)


@asynchronous
async def test_all_pages_are_those_that_meminfo_counts(cached: Cached, profiles: Path) -> None:
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        files = await machine.query(lambda guest: guest.cached_files().items)
    said = cached.guest.run("cat /proc/meminfo").decode()
    kib = {name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", said)}
    pages = sum(file.cached for file in files)
    # counted on each CPU by itself, and added up when there are some dozen
    assert abs(pages * 4 - kib["Cached"] - kib["Buffers"]) <= 4 * 128


@asynchronous
async def test_of_a_file_system_on_a_disk_it_tells_what_was_read_and_what_is_dirty(
    cached: Cached, profiles: Path
) -> None:
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        files = await machine.query(listed)
        every = await machine.query(lambda guest: guest.cached_files().items)
    assert files["disk/part"].cached == 40
    assert files["disk/part"].dirty == 0
    assert "disk/none" not in files
    # 5.10 keeps one page more, behind the end
    assert files["disk/dirty"].dirty == 20 <= files["disk/dirty"].cached <= 21
    assert (files["disk/byte"].dirty, files["disk/byte"].cached) == (1, 1)
    assert {files[f"disk/{name}"].device for name in ("part", "dirty", "byte")} == {"7:0"}
    (device,) = (file for file in every if file.filesystem == "bdev" and file.device == "7:0")
    assert (device.path, device.deleted, device.size) == ("", False, 16 << 20)


@asynchronous
async def test_the_content_is_what_the_guest_hashes(
    cached: Cached, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    told = cached.told
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        files = await machine.query(listed)
        for name in (*TOLD, "gone"):
            data, missing = await machine.query(partial(content, file=files[name]))
            assert not missing, name
            assert hashlib.sha256(data).hexdigest() == told.sums[name], name
            proof_count(len(data) // PAGE)


@asynchronous
async def test_a_part_that_was_not_read_is_missing_and_the_rest_is_there(
    cached: Cached, profiles: Path
) -> None:
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        files = await machine.query(listed)
        data, missing = await machine.query(lambda guest: content(guest, files["disk/part"]))
        whole, none = await machine.query(lambda guest: content(guest, files["part"]))
    assert not none
    assert hashlib.sha256(whole).hexdigest() == cached.told.sums["part"]
    assert [(part.start, part.end) for part in missing] == [
        (0, 100 * PAGE),
        (140 * PAGE, 300 * PAGE),
    ]
    assert {part.reason for part in missing} == {"not in memory"}
    assert data[100 * PAGE : 140 * PAGE] == whole[100 * PAGE : 140 * PAGE]
    assert not any(data[: 100 * PAGE])
    assert not any(data[140 * PAGE :])


@asynchronous
async def test_a_deleted_file_that_is_held_is_named_as_it_was(
    cached: Cached, profiles: Path
) -> None:
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        every = await machine.query(lambda guest: guest.cached_files().items)
    gone = {file.path: file for file in every if file.deleted}
    assert {f"{FOLDER}/gone", "/run/deleted-exe", "/memfd:hidden program"} <= gone.keys()
    assert gone[f"{FOLDER}/gone"].size == 9000


@asynchronous
async def test_a_folder_limits_what_is_listed(cached: Cached, profiles: Path) -> None:
    async with qvmi.attach(cached.guest.qmp, cache=profiles) as machine:
        guest = machine.guest
        assert set(listed(guest, f"{FOLDER}/deep")) == {"deep/er/small"}
        assert set(listed(guest, f"{FOLDER}/large")) == {"large"}
        assert not listed(guest, f"{FOLDER}/lar")
        assert set(listed(guest, "/root/")) == {"/root/marker.txt"}
        assert "" in {file.path for file in guest.cached_files()}
        assert "" not in {file.path for file in guest.cached_files("/")}


@asynchronous
async def test_a_file_that_is_gone_is_not_taken_for_another(cached: Cached, profiles: Path) -> None:
    guest = cached.guest
    guest.run(f"printf going > {FOLDER}/going")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        going = (await machine.query(listed))["going"]
        guest.run(f"rm {FOLDER}/going")
        with pytest.raises(GuestError, match="gone"):
            await machine.query(lambda guest: content(guest, going))


@pytest.mark.parametrize(
    "cached", [CONFIGS[0], CONFIGS[-1]], ids=["5.10", "7.x-arm64"], indirect=True
)
def test_the_command_writes_a_file_and_says_what_is_missing(cached: Cached, tmp_path: Path) -> None:
    path = tmp_path / "part"
    options = ("--qmp", cached.guest.qmp)
    done = command(*options, "--json", "recover", f"{FOLDER}/disk/part", "-o", str(path))
    assert (done.returncode, done.stderr) == (4, "")
    document = json.loads(done.stdout)
    assert document["missing_size"] == 260 * PAGE
    assert [part["start"] for part in document["missing"]] == [0, 140 * PAGE]
    assert path.stat().st_size == 300 * PAGE
    assert path.stat().st_mode & 0o777 == 0o600
    done = command(*options, "recover", f"{FOLDER}/gone", "-o", str(path), "--exact")
    assert done.returncode == 0
    assert re.fullmatch(r"qvmi: the guest stood still for [0-9.]+ ms\n", done.stderr)
    assert done.stdout == f"{path}: 9000 bytes, 0 of them missing\n"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == cached.told.sums["gone"]
    assert cached.guest.monitor.running()
    as_listed = command(*options, "recover", f"{FOLDER}/gone (deleted)", "-o", str(path))
    assert as_listed.returncode == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == cached.told.sums["gone"]


@pytest.mark.parametrize(
    "cached", [CONFIGS[0], CONFIGS[-1]], ids=["5.10", "7.x-arm64"], indirect=True
)
def test_a_file_can_be_named_by_device_and_inode(cached: Cached, tmp_path: Path) -> None:
    path, told = tmp_path / "large", cached.told
    options = ("--qmp", cached.guest.qmp)
    listing = json.loads(command(*options, "--json", "cached", "--under", FOLDER).stdout)
    (device,) = {row["device"] for row in listing["items"] if row["path"] == f"{FOLDER}/large"}
    name = f"{device}:{told.inodes['large']}"
    assert command(*options, "recover", name, "-o", str(path)).returncode == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told.sums["large"]
    path.unlink()
    for name, why in (
        (
            "/no/such",
            "no page of a file '/no/such' is in the guest's memory; a file can be named by",
        ),
        ("2", "several files"),
        (FOLDER, f"'{FOLDER}' is a folder"),
    ):
        done = command(*options, "recover", name, "-o", str(path))
        assert done.returncode == 4
        assert why in done.stderr
        assert not path.exists()


@pytest.mark.parametrize("guest", ["5.10", "7.x"], indirect=True)
@asynchronous
async def test_files_that_stay_are_listed_while_others_come_and_go(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    guest.start_churn()
    guest.start_storm(4)
    stay = {"/init", "/bin/busybox", "/etc/passwd", "/run/deleted-exe", "/memfd:hidden program"}
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        before = {file.path: file for file in machine.guest.cached_files()}
        for _ in range(LOOKS):
            files = {file.path: file for file in machine.guest.cached_files()}
            assert [files.get(path) for path in stay] == [before[path] for path in stay]
            proof_count(1)
        data, missing = content(machine.guest, before["/init"])
    guest.stop_storm()
    guest.stop_churn()
    assert not missing
    assert hashlib.sha256(data).hexdigest() == guest.run("sha256sum /init").decode().split()[0]
