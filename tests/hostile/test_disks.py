"""Disks that a guest has made to mislead whoever reads them: each look ends, in an answer or an error."""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest

from qvmi.disk.disk import VirtualDisk
from qvmi.errors import CorruptDisk, QvmiError
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.proofs import proof_size
from tests.unit.disk.images import Image, file_system, opened, ran

MEMORY_MIB: Final = 32
"""What a look may take at once; the largest piece that is read has 2 MiB, what is kept 4."""
CPU_S: Final = 60.0
"""What a look may take that leads nowhere; some seconds on an idle host."""
SIZE: Final = 4 << 20
"""Bytes of the disks."""
EXTENT_MAGIC: Final = 0xF30A


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is a good disk: extents, a folder of some blocks, a symlink, a file that lists its blocks."""
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "source"
    (source / "many").mkdir(parents=True)
    for number in range(300):
        (source / "many" / f"file-{number}").touch()
    (source / "file").write_bytes(bytes(range(256)) * 2000)
    (source / "link").symlink_to("many/../file")
    return file_system(folder / "disk", source, "-t", "ext4", "-b", "1024", size="4M")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is the same as ext2, whose files list their blocks."""
    folder = tmp_path_factory.mktemp("listing")
    source = folder / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 2000)
    return file_system(folder / "disk", source, "-t", "ext2", "-b", "1024", size="4M")


def look_everywhere(disk: VirtualDisk) -> None:
    """This asks all there is to ask; errors of ours are answers."""

    def read() -> None:
        for _ in islice(disk.read(b"/link").parts(), 64):
            pass

    looks: tuple[Callable[[], Any], ...] = (
        disk.volumes,
        lambda: disk.list(b"/"),
        lambda: disk.list(b"/many"),
        lambda: disk.stat(b"/link"),
        lambda: disk.blocks(12, range(64), 4096),
        read,
    )
    for look in looks:
        with suppress(QvmiError):
            look()


def metadata(image: Path) -> list[int]:
    """These are the offsets of bytes that are not zero in the first part, where all metadata is."""
    return [at for at, byte in enumerate(image.read_bytes()[: 600 << 10]) if byte]


def mutations(image: Path, count: int, seed: int) -> Iterator[Path]:
    """This damages an image in a few places, each time others, and lets it be looked at."""
    whole = image.read_bytes()
    places = metadata(image)
    chosen = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(chosen.choice((1, 1, 2, 5))):
            at = chosen.choice(places)
            value = chosen.choice((0, 1, 0x7F, 0x80, 0xFF, chosen.randrange(256)))
            width = chosen.choice((1, 1, 2, 4, 8))
            damaged[at : at + width] = bytes([value]) * width
        image.write_bytes(damaged)
        yield image
    image.write_bytes(whole)


@pytest.mark.parametrize("kind", ["ext4", "ext2", "qcow2", "gpt", "dos"])
def test_damaged_disks_are_answered_or_refused(
    tmp_path: Path,
    raw: Path,
    listing: Path,
    kind: str,
    proof_count: Callable[[int], None],
) -> None:
    disk = tmp_path / "disk"
    form = "qcow2" if kind == "qcow2" else "raw"
    if kind == "qcow2":
        ran("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=4k", raw, disk)
    elif kind in {"gpt", "dos"}:
        _in_partitions(disk, raw, kind)
    else:
        disk.write_bytes((raw if kind == "ext4" else listing).read_bytes())
    count = proof_size(ci=60, full=2000)
    for image in mutations(disk, count, seed=len(kind)):
        with opened((form, image)) as damaged, cpu_seconds(CPU_S):
            look_everywhere(damaged)
    proof_count(count)


def _in_partitions(disk: Path, inner: Path, kind: str) -> None:
    ran("truncate", "-s", "8M", disk)
    table = f"label: {kind}\nsize=4M\nsize=1M\n"
    ran("sfdisk", "-q", disk, given=table)
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(inner.read_bytes())


def inode_at(image: Path, name: str) -> int:
    """This is the offset of a file's inode in a disk."""
    told = ran("debugfs", "-R", f"imap /{name}", image)
    place = told.partition("at block ")[2].split()
    return int(place[0].rstrip(",")) * 1024 + int(place[2], 16)


def patched(image: Path, name: str, at: int, data: bytes, target: Path) -> Image:
    """This is a copy of a disk with another inode of a file."""
    whole = bytearray(image.read_bytes())
    start = inode_at(image, name) + at
    whole[start : start + len(data)] = data
    target.write_bytes(whole)
    return "raw", target


def node(count: int, depth: int, entries: bytes, size: int) -> bytes:
    """This is a node of a tree of extents."""
    return (struct.pack("<HHHHI", EXTENT_MAGIC, count, count, depth, 0) + entries).ljust(
        size, b"\0"
    )


def index(block: int, place: int) -> bytes:
    return struct.pack("<IIHH", block, place, 0, 0)


def test_a_tree_of_extents_that_leads_to_itself_is_refused(tmp_path: Path, raw: Path) -> None:
    root = node(1, 3, index(0, 3000), 60)
    image = patched(raw, "file", 0x28, root, tmp_path / "disk")
    with image[1].open("r+b") as file:
        file.seek(3000 * 1024)
        file.write(node(1, 3, index(0, 3000), 1024))
    with opened(image) as disk, pytest.raises(CorruptDisk, match="a node of the tree"):
        list(disk.read(b"/file").parts())


def test_a_tree_whose_branches_are_all_the_same_ends(tmp_path: Path, raw: Path) -> None:
    """84 branches at each of five levels, all of them the same few blocks: four billion paths."""
    image = patched(raw, "file", 0x28, node(4, 5, index(0, 3001) * 4, 60), tmp_path / "disk")
    with image[1].open("r+b") as file:
        for depth in range(1, 5):
            file.seek((3005 - depth) * 1024)
            file.write(node(84, depth, index(0, 3006 - depth) * 84, 1024))
        file.seek(3005 * 1024)
        file.write(node(0, 0, b"", 1024))
    with (
        opened(image) as disk,
        cpu_seconds(CPU_S),
        pytest.raises(CorruptDisk, match="it leads nowhere"),
    ):
        list(disk.read(b"/file").parts())


def test_a_list_of_blocks_whose_branches_are_all_the_same_ends(
    tmp_path: Path, listing: Path
) -> None:
    pointers = struct.pack("<15I", *[0] * 14, 3000)
    size = struct.pack("<I", 0xFFFF_FFFF)
    image = patched(listing, "file", 0x28, pointers, tmp_path / "disk")
    image = patched(image[1], "file", 0x4, size, tmp_path / "larger")
    image = patched(image[1], "file", 0x6C, struct.pack("<I", 0xFFF), tmp_path / "largest")
    with image[1].open("r+b") as file:
        file.seek(3000 * 1024)
        file.write(struct.pack("<I", 3000) * 256)
    sizes: list[int] = []
    with opened(image) as disk, pytest.raises(CorruptDisk, match="more blocks than its volume"):
        sizes.extend(len(data) for _, data in disk.read(b"/file").parts())
    assert sum(sizes) == SIZE


def test_a_file_of_tebibytes_takes_no_memory_and_no_time_to_be_told(
    tmp_path: Path, raw: Path
) -> None:
    image = patched(raw, "file", 0x6C, struct.pack("<I", 0xFFF), tmp_path / "disk")
    with opened(image) as disk, peak_mib(MEMORY_MIB), cpu_seconds(CPU_S):
        (entry,) = disk.list(b"/file").rows
        parts = sum(len(data) for _, data in disk.read(b"/file").parts())
    assert entry.size > 1 << 43
    assert parts <= SIZE


def test_a_folder_of_gibibytes_is_refused(tmp_path: Path, raw: Path) -> None:
    image = patched(raw, "many", 0x4, struct.pack("<I", 0xFFFF_FC00), tmp_path / "disk")
    with opened(image) as disk:
        assert disk.list(b"/many").gaps == ("what follows 0 entries: a folder of 4294966272 bytes",)


def test_a_path_through_folders_of_nothing_but_names_ends(tmp_path: Path) -> None:
    """5,461 names in each block of 64 KiB, 1,012 such blocks, and the next step of the path behind them."""
    block, count = 65536, 1012
    source = tmp_path / "source"
    (source / "many").mkdir(parents=True)
    path = file_system(tmp_path / "disk", source, "-t", "ext2", "-b", str(block), size="96M")
    place = ran("debugfs", "-R", "imap /many", path).partition("at block ")[2].split()
    inode = int(ran("debugfs", "-R", "stat /many", path).partition("Inode: ")[2].split()[0])
    names, last, table = 1000, 1001, 1002
    with path.open("r+b") as file:
        file.seek(names * block)
        file.write(struct.pack("<IHBBc3x", inode, 12, 1, 2, b"a") * (block // 12 - 1))
        file.write(struct.pack("<IHBBc", inode, 12 + block % 12, 1, 2, b"a"))
        file.seek(last * block)
        file.write(struct.pack("<IHBBc", inode, 0, 1, 2, b"z"))
        file.seek(table * block)
        file.write(struct.pack("<I", names) * (count - 13) + struct.pack("<I", last))
        file.seek(int(place[0].rstrip(",")) * block + int(place[2], 16))
        start = file.tell()
        file.seek(start + 0x4)
        file.write(struct.pack("<I", count * block))
        file.seek(start + 0x28)
        file.write(struct.pack("<15I", *[names] * 12, table, 0, 0))
    with (
        opened(("raw", path)) as disk,
        cpu_seconds(CPU_S),
        pytest.raises(CorruptDisk, match="it leads nowhere"),
    ):
        disk.stat(b"many/" + b"z/" * 2000)


def test_a_compressed_cluster_that_unpacks_without_end_takes_one_cluster(tmp_path: Path) -> None:
    source, packed = tmp_path / "source", tmp_path / "packed.qcow2"
    source.write_bytes(bytes(64 << 20))
    ran("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=2M", source, packed)
    with opened(("qcow2", packed)) as disk, peak_mib(MEMORY_MIB):
        disk.volumes()
