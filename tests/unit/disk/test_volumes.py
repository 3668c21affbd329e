"""The volumes of a disk are those that sfdisk tells."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from qvmi.disk.disk import Found
from qvmi.disk.rows import Volume
from qvmi.errors import NoSuchFile, UsageError
from tests.unit.disk.images import file_system, opened, ran, read_whole

MIB: Final = 1 << 20
SECTOR: Final = 512
TABLES: Final = {
    "gpt": "label: gpt\nsize=4M\nsize=12M\nsize=1M\n",
    "dos": "label: dos\nsize=4M\nsize=12M\nstart=17M,size=30M,type=5\nsize=4M\nsize=5M\n",
}


def partitioned(disk: Path, table: str) -> list[dict[str, Any]]:
    """This makes a table of partitions, and gives those that sfdisk then sees, but for extended ones."""
    ran("truncate", "-s", "64M", disk)
    ran("sfdisk", "-q", disk, given=table)
    told = json.loads(ran("sfdisk", "-J", disk))["partitiontable"]["partitions"]
    return [one for one in told if one["type"] != "5"]


def number(partition: dict[str, Any]) -> int:
    return int(partition["node"].rpartition("disk")[2])


def volumes(disk: Path) -> Found[Volume]:
    with opened(("raw", disk)) as opened_disk:
        return opened_disk.volumes()


@pytest.mark.parametrize("scheme", TABLES)
def test_partitions_are_where_sfdisk_says(tmp_path: Path, scheme: str) -> None:
    disk = tmp_path / "disk"
    told = partitioned(disk, TABLES[scheme])
    found = volumes(disk)
    assert not found.gaps
    places = {volume.number: (volume.start, volume.size) for volume in found.rows}
    assert places == {number(one): (one["start"] * SECTOR, one["size"] * SECTOR) for one in told}
    assert {volume.scheme for volume in found.rows} == {"gpt" if scheme == "gpt" else "mbr"}


def test_files_are_read_from_the_one_partition_with_a_file_system(tmp_path: Path) -> None:
    disk, source = tmp_path / "disk", tmp_path / "source"
    partitioned(disk, TABLES["gpt"])
    source.mkdir()
    (source / "file").write_text("within a partition")
    inner = file_system(tmp_path / "inner", source, "-t", "ext4", size="12M")
    with disk.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(inner.read_bytes())
    assert read_whole(("raw", disk), path="/file") == b"within a partition"
    assert read_whole(("raw", disk), path="/file", volume=2) == b"within a partition"
    with pytest.raises(UsageError, match="volume 1 has no file system that is read"):
        read_whole(("raw", disk), path="/file", volume=1)
    with pytest.raises(NoSuchFile, match="there is no volume 7"):
        read_whole(("raw", disk), path="/file", volume=7)


def test_with_two_file_systems_one_must_be_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    partitioned(disk, TABLES["gpt"])
    for number, start in ((1, 1), (2, 5)):
        inner = file_system(tmp_path / f"inner-{number}", None, "-t", "ext2", size="4M")
        with disk.open("r+b") as file:
            file.seek(start * MIB)
            file.write(inner.read_bytes())
    with pytest.raises(UsageError, match="several volumes have a file system; name one of 1, 2"):
        read_whole(("raw", disk), path="/file")


def test_a_file_system_with_a_boot_sector_is_no_table_of_partitions(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "disk", None, "-t", "ext4", size="8M")
    with disk.open("r+b") as file:
        file.seek(446)
        file.write(bytes(range(64)) + b"\x55\xaa")
    (volume,) = volumes(disk).rows
    assert (volume.number, volume.filesystem) == (0, "ext4")


def test_a_disk_of_nothing_has_one_volume_without_a_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ran("truncate", "-s", "1M", disk)
    found = volumes(disk)
    assert [(volume.number, volume.size, volume.filesystem) for volume in found.rows] == [
        (0, MIB, "")
    ]
    with pytest.raises(NoSuchFile):
        read_whole(("raw", disk), path="/file")


def test_a_damaged_table_is_read_from_its_second_copy_and_without_one_it_is_a_gap(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    partitioned(disk, TABLES["gpt"])
    whole = volumes(disk)
    for place in (SECTOR + 40, 64 * MIB - SECTOR + 40):
        assert volumes(disk) == whole
        with disk.open("r+b") as file:
            file.seek(place)
            file.write(b"?")
    assert volumes(disk).gaps == ("partition table: the checksum of its header is wrong",)


def test_logical_partitions_in_a_circle_are_a_gap(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    told = partitioned(disk, TABLES["dos"])
    table = 17 * MIB
    with disk.open("r+b") as file:
        file.seek(table + 446 + 16)
        file.write(bytes([0, 0, 0, 0, 5, 0, 0, 0]) + bytes(4) + (2048).to_bytes(4, "little"))
    found = volumes(disk)
    assert len(found.rows) <= len(told)
    (gap,) = found.gaps
    assert "does not end" in gap


def test_a_partition_named_as_a_file_system_begins_hides_no_partition(tmp_path: Path) -> None:
    """The name of the first partition is where the magic number of a file system would be."""
    disk, source = tmp_path / "disk", tmp_path / "source"
    partitioned(disk, 'label: gpt\nsize=12M,name="\uef53"\nsize=4M\n')
    source.mkdir()
    (source / "file").write_text("within a partition")
    inner = file_system(tmp_path / "inner", source, "-t", "ext4", size="12M")
    with disk.open("r+b") as file:
        file.seek(MIB)
        file.write(inner.read_bytes())
    found = volumes(disk)
    assert [(one.number, one.filesystem) for one in found.rows] == [(0, ""), (1, "ext4"), (2, "")]
    assert found.gaps[0] == "it begins as a file system, and has partitions, too"
    assert read_whole(("raw", disk), path="/file") == b"within a partition"


def test_with_a_file_system_before_its_partitions_one_must_be_named(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "disk", None, "-t", "ext2", size="4M")
    ran("sfdisk", "-q", "--wipe", "never", disk, given="label: dos\nstart=2M,size=1M\n")
    inner = file_system(tmp_path / "inner", None, "-t", "ext2", size="1M")
    with disk.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(inner.read_bytes())
    with pytest.raises(UsageError, match="several volumes have a file system; name one of 0, 1"):
        read_whole(("raw", disk), path="/file")
