"""What a process has mapped, seen from itself: this very process maps files and looks."""

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qvmi.machine.ways.host_mapping import HostMapping, HostMaps, opened_file

SIZE = 3 * mmap.PAGESIZE


@contextmanager
def mapped(path: Path, flags: int) -> Iterator[mmap.mmap]:
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE, flags=flags) as mapping:
        yield mapping


def only_mapping_of(path: Path) -> HostMapping:
    inode = path.stat().st_ino
    (found,) = (one for one in HostMaps(os.getpid()).mappings() if one.inode == inode)
    return found


def test_a_shared_file_is_shared(tmp_path: Path) -> None:
    with mapped(tmp_path / "ram", mmap.MAP_SHARED):
        assert HostMaps(os.getpid()).share_file(tmp_path / "ram", 0)


def test_a_private_copy_is_not_shared(tmp_path: Path) -> None:
    with mapped(tmp_path / "ram", mmap.MAP_PRIVATE):
        assert not HostMaps(os.getpid()).share_file(tmp_path / "ram", 0)


def test_another_file_of_the_same_name_is_not_the_one_shared(tmp_path: Path) -> None:
    with mapped(tmp_path / "ram", mmap.MAP_SHARED):
        (tmp_path / "ram").rename(tmp_path / "away")
        (tmp_path / "ram").write_bytes(bytes(SIZE))
        maps = HostMaps(os.getpid())
        assert not maps.share_file(tmp_path / "ram", 0)
        assert maps.share_file(tmp_path / "away", 0)


def test_a_file_that_only_shares_its_number_is_not_the_one_shared(tmp_path: Path) -> None:
    with mapped(tmp_path / "ram", mmap.MAP_SHARED):
        maps = HostMaps(os.getpid())
        number = (tmp_path / "ram").stat().st_ino
        maps.text = maps.text.replace(b" %d " % number, b" %d0 " % number)
        assert not maps.share_file(tmp_path / "ram", 0)


def test_only_the_mapped_part_of_a_file_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(SIZE))
    page = mmap.PAGESIZE
    with path.open("r+b") as file, mmap.mmap(file.fileno(), page, offset=page):
        maps = HostMaps(os.getpid())
        assert [maps.share_file(path, at * page) for at in range(3)] == [False, True, False]


def test_a_mapping_says_where_in_the_file_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(SIZE))
    page = mmap.PAGESIZE
    with path.open("r+b") as file, mmap.mmap(file.fileno(), page, offset=page):
        found = only_mapping_of(path)
        assert (found.offset, found.end - found.start, found.shared) == (page, page, True)
        assert found.path == str(path)
        assert path.stat().st_dev == found.device


def test_a_deleted_file_is_opened_through_its_process(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with mapped(path, mmap.MAP_SHARED):
        found = only_mapping_of(path)
        inode = path.stat().st_ino
        path.unlink()
        opened = opened_file(os.getpid(), found)
        assert opened is not None
        assert opened.stat().st_ino == inode


def test_a_process_that_is_gone_is_said_when_it_is_asked_for() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    maps = HostMaps(ended.pid)
    maps.prefetch()
    with pytest.raises(OSError, match=str(ended.pid)):
        maps.mappings()


def test_it_is_read_once(tmp_path: Path) -> None:
    maps = HostMaps(os.getpid())
    maps.prefetch()
    with mapped(tmp_path / "late", mmap.MAP_SHARED):
        assert not maps.share_file(tmp_path / "late", 0)
        assert HostMaps(os.getpid()).share_file(tmp_path / "late", 0)
