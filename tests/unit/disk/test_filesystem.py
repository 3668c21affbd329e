"""What is read of a file system is what was put there."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from qvmi.disk.rows import DiskEntry, Volume
from qvmi.errors import CorruptDisk, NoSuchFile, QvmiError, UsageError
from tests.unit.disk.images import Image, file_system, opened, ran, read_whole, tree

KINDS = {"ext2": (), "ext3": (), "ext4": (), "blocks of 1 KiB": ("-b", "1024")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module", params=KINDS)
def image(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Image:
    kind = request.param if request.param.startswith("ext") else "ext4"
    path = tmp_path_factory.mktemp("image") / "disk"
    return "raw", file_system(path, source, "-t", kind, *KINDS[request.param])


def listed(image: Image, path: str) -> dict[str, DiskEntry]:
    """This is what a folder has, by name; nothing of it may be lacking."""
    with opened(image) as disk:
        found = disk.list(path.encode())
    assert not found.gaps
    return {entry.path.rpartition("/")[2]: entry for entry in found.rows}


def shown(path: Path) -> str:
    return os.fsencode(path.name).decode(errors="backslashreplace")


def facts(path: Path) -> tuple[int, int, int, int, int]:
    its = path.lstat()
    return stat.S_IMODE(its.st_mode), its.st_uid, its.st_gid, its.st_size, its.st_nlink


@pytest.mark.parametrize("folder", ["", "etc", "many"])
def test_a_folder_has_the_names_and_inodes_that_it_was_given(
    image: Image, source: Path, folder: str
) -> None:
    found = listed(image, folder)
    assert set(found) - {"lost+found"} == {shown(path) for path in (source / folder).iterdir()}
    for path in (source / folder).iterdir():
        entry = found[shown(path)]
        assert path.lstat().st_mtime_ns // 10**9 == entry.modified_ns // 10**9
        if entry.kind != "folder":
            told = (entry.mode, entry.uid, entry.gid, entry.size, entry.links)
            assert told == facts(path)


def test_each_kind_of_thing_is_told(image: Image) -> None:
    root = listed(image, "/")
    kinds = {name: root[name].kind for name in ("etc", "large", "to passwd", "fifo")}
    assert kinds == {"etc": "folder", "large": "file", "to passwd": "symlink", "fifo": "fifo"}
    assert root["to passwd"].target == "etc/passwd"
    assert root["far"].target == "x" * 200
    assert root["\\xff\\xfe name"].size == 9


@pytest.mark.parametrize("name", ["empty", "large", "holes", "etc/passwd"])
def test_a_files_content_is_that_which_was_written(image: Image, source: Path, name: str) -> None:
    assert read_whole(image, path=name) == (source / name).read_bytes()


def test_a_name_that_is_no_utf_8_is_found_by_its_bytes(image: Image) -> None:
    assert read_whole(image, path=b"\xff\xfe name") == b"not UTF-8"


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [("to passwd", "etc/passwd"), ("etc/back", "large"), ("etc/../../../etc/passwd", "etc/passwd")],
)
def test_symlinks_and_dots_lead_where_they_lead_in_the_guest(
    image: Image, source: Path, path: str, leads_to: str
) -> None:
    assert read_whole(image, path=path) == (source / leads_to).read_bytes()


def test_a_symlink_is_itself_when_it_is_asked_about(image: Image) -> None:
    with opened(image) as disk:
        (entry,) = disk.stat(b"/to passwd").rows
    assert (entry.kind, entry.target, entry.path) == ("symlink", "etc/passwd", "/to passwd")


def test_what_a_symlink_leads_to_can_be_asked_about_and_a_folder_without_files(
    image: Image, source: Path
) -> None:
    with opened(image) as disk:
        (followed,) = disk.stat(b"/to passwd", follow=True).rows
        (folder,) = disk.stat(b"/lost+found", follow=True).rows
    assert (followed.kind, followed.size) == ("file", (source / "etc/passwd").stat().st_size)
    assert folder.kind == "folder"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nothing", NoSuchFile),
        (b"large/below", NoSuchFile),
        (b"far", NoSuchFile),
        (b"etc", UsageError),
        (b"fifo", UsageError),
        (b"round", CorruptDisk),
        (b"a" * 5000, UsageError),
    ],
)
def test_says_why_a_path_has_no_content(image: Image, path: bytes, error: type[QvmiError]) -> None:
    with pytest.raises(error):
        read_whole(image, path=path)


def test_the_inode_is_the_one_that_debugfs_tells(image: Image) -> None:
    entry = listed(image, "/etc")["passwd"]
    told = ran("debugfs", "-R", "stat /etc/passwd", image[1])
    assert f"Inode: {entry.inode} " in told
    assert f"Generation: {entry.generation} " in told


def test_blocks_are_told_by_their_hashes_and_holes_by_none(image: Image, source: Path) -> None:
    inode = listed(image, "/")["holes"].inode
    wanted = [0, 1, 2, 256, 257, 300, 11263]
    with opened(image) as disk:
        facts, digests = disk.blocks(inode, wanted, 4096)
    content = (source / "holes").read_bytes()
    expected = [content[at * 4096 : (at + 1) * 4096] for at in wanted]
    assert facts.size == len(content)
    for found, block in zip(digests, expected, strict=True):
        assert found in {"", hashlib.sha256(block).hexdigest()}
        assert bool(found) or not block.strip(b"\0") or len(block.strip(b"\0")) < 1000
    assert digests[0] == hashlib.sha256(expected[0]).hexdigest()
    assert (digests[5], digests[6]) == ("", "")


def test_what_is_no_file_has_no_blocks_that_could_be_compared(image: Image) -> None:
    entries = listed(image, "/")
    with opened(image) as disk:
        for name in ("etc", "fifo", "to passwd"):
            facts, digests = disk.blocks(entries[name].inode, [0, 1], 4096)
            assert (facts.kind, digests) == (entries[name].kind, ("", ""))


def test_of_a_large_file_the_blocks_that_are_asked_for_are_read_and_no_others(
    image: Image,
) -> None:
    inode = listed(image, "/")["large"].inode
    with opened(image) as disk:
        before = bytes_read()
        disk.blocks(inode, [0, 1, 300, 700], 4096)
        assert bytes_read() - before < 1_000_000


def bytes_read() -> int:
    """This is how many bytes this process has read, as the kernel counts."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"])


def test_the_last_inode_of_all_is_seen(tmp_path: Path) -> None:
    image = file_system(tmp_path / "disk", None, "-t", "ext4", "-N", "16", size="4M")
    count = int(ran("dumpe2fs", "-h", image).partition("Inode count:")[2].split()[0])
    (tmp_path / "file").write_text("x")
    for number in range(count - 11):  # 11 are taken from the beginning
        ran("debugfs", "-w", "-R", f"write {tmp_path}/file file-{number}", image)
    entries = listed(("raw", image), "/").values()
    assert max(entry.inode for entry in entries) == count
    assert len(entries) == count - 11 + 1


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """This is a file system with three files, of 8 MiB."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("one", "two", "three"):
        (source / name).write_text(name)
    return file_system(tmp_path / "disk", source, "-t", "ext4", size="8M")


def test_the_blocks_of_a_file_that_is_encrypted_are_not_compared(small: Path) -> None:
    inode = listed(("raw", small), "/")["two"].inode
    ran("debugfs", "-w", "-R", "set_inode_field /two flags 0x80800", small)
    with opened(("raw", small)) as disk, pytest.raises(CorruptDisk, match="encrypted"):
        disk.blocks(inode, [0], 4096)


def test_what_is_damaged_in_a_folder_is_a_gap_and_hides_nothing_else(small: Path) -> None:
    ran("debugfs", "-w", "-R", "set_inode_field /two mode 0", small)
    with opened(("raw", small)) as disk:
        found = disk.list(b"/")
    assert {entry.path for entry in found.rows} == {"/lost+found", "/one", "/three"}
    (gap,) = found.gaps
    assert gap.startswith("/two: inode ")


def test_a_folder_whose_entries_have_no_length_is_a_gap(small: Path) -> None:
    size = int(ran("dumpe2fs", "-h", small).partition("Block size:")[2].split()[0])
    block = int(ran("debugfs", "-R", "bmap / 0", small))
    with small.open("r+b") as file:
        file.seek(block * size + 24 + 4)  # behind . and .., in the third entry
        file.write(b"\0\0")
    with opened(("raw", small)) as disk:
        found = disk.list(b"/")
    assert not found.rows
    assert found.gaps == ("what follows 0 entries: an entry of 0 bytes at 24 of its block",)


def test_a_folder_of_whose_blocks_some_are_not_there_is_a_gap(small: Path) -> None:
    ran("debugfs", "-w", "-R", "punch / 0 0", small)
    with opened(("raw", small)) as disk:
        assert disk.list(b"/").gaps == (
            "what follows 0 entries: of a folder of 1024 bytes 0 blocks are there",
        )
        with pytest.raises(CorruptDisk, match="0 blocks are there"):
            disk.stat(b"/one")


def test_a_path_through_a_symlink_that_leads_nowhere_is_no_path_of_another_file(
    small: Path,
) -> None:
    ran("debugfs", "-w", "-R", "symlink link x", small)
    ran("debugfs", "-w", "-R", "set_inode_field /link flags 0x800", small)
    with opened(("raw", small)) as disk, pytest.raises(CorruptDisk, match="encrypted, or empty"):
        disk.read(b"/link/one")


def test_a_journal_that_waits_is_told(small: Path) -> None:
    told: list[Volume] = []
    for _ in range(2):
        with opened(("raw", small)) as disk:
            told += disk.volumes().rows
        ran("debugfs", "-w", "-R", "feature needs_recovery", small)
    assert [volume.journal_pending for volume in told] == [False, True]
    assert told[0].uuid in ran("dumpe2fs", "-h", small)


def test_features_that_are_not_read_are_a_gap(small: Path) -> None:
    ran("debugfs", "-w", "-R", "feature journal_dev", small)
    with opened(("raw", small)) as disk:
        assert disk.volumes().gaps == (
            "volume 0: the file system has the features 0x8, which are not read",
        )


def test_a_file_that_changes_while_it_is_read_is_told(small: Path) -> None:
    with opened(("raw", small)) as disk:
        parts = disk.read(b"/one").parts()
        assert next(parts) == (0, b"one")
        ran("debugfs", "-w", "-R", "set_inode_field /one mtime 20200101", small)
        with pytest.raises(CorruptDisk, match="has changed the file"):
            next(parts)
