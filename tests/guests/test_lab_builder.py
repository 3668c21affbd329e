"""What the lab builds and keeps: whole or not at all, once, and the same for the same input."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.guests.lab import LabError
from tests.guests.lab.cache import FORGOTTEN_SECONDS, REPLACED_SECONDS, Cache, digest_of
from tests.guests.lab.cpio import CpioArchive
from tests.guests.lab.kernels import newest_kernel
from tests.guests.lab.modules import MODULES_AT_BOOT, modules_with_needs
from tests.guests.lab.saved_state import copy_sparse

FIRST, SECOND = digest_of("first"), digest_of("second")


def _fill(folder: Path) -> dict[str, str]:
    (folder / "content").write_text("whole")
    return {"made": "once"}


def test_a_build_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.build("kind", "name", FIRST, _fill)
    (first / "content").write_text("kept")
    assert cache.build("kind", "name", FIRST, _fill) == first
    assert (first / "content").read_text() == "kept"


def test_two_builders_at_once_make_it_once(tmp_path: Path) -> None:
    cache, begun = Cache(tmp_path), threading.Event()
    made: list[Path] = []

    def make(folder: Path) -> dict[str, str]:
        made.append(folder)
        begun.wait(0.2)  # room for the other to begin too, if nothing kept it
        return _fill(folder)

    builders = [
        threading.Thread(target=cache.build, args=("kind", "name", FIRST, make)) for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(made) == 1


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> dict[str, str]:
        (folder / "half").write_text("half")
        raise LabError("no luck")

    with pytest.raises(LabError, match="no luck"):
        cache.build("kind", "name", FIRST, fail)
    assert not list(tmp_path.rglob("half"))
    assert (cache.build("kind", "name", FIRST, _fill) / "content").exists()


def test_a_replaced_build_stays_while_somebody_may_read_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.build("kind", "name", FIRST, _fill)
    cache.build("kind", "name", SECOND, _fill)
    assert first.exists()


@pytest.mark.parametrize(
    ("name", "age"), [("name", REPLACED_SECONDS), ("other", FORGOTTEN_SECONDS)]
)
def test_a_build_nobody_uses_any_more_goes(tmp_path: Path, name: str, age: float) -> None:
    cache = Cache(tmp_path)
    old = cache.build("kind", name, FIRST, _fill)
    os.utime(old, times=(time.time() - age - 60,) * 2)
    cache.build("kind", "name", SECOND, _fill)
    assert not old.exists()


def test_busybox_unpacks_the_archive_we_wrote(tmp_path: Path) -> None:
    archive = CpioArchive()
    archive.folder("etc", 0o750)
    archive.file("etc/odd", b"123", 0o640)
    archive.file("program", b"#!/bin/sh\n" * 1000, 0o755)
    archive.symlink("etc/link", "odd")
    subprocess.run(
        ["busybox", "cpio", "-i"], input=archive.finish(), cwd=tmp_path, check=True, timeout=60
    )
    assert (tmp_path / "etc" / "odd").read_bytes() == b"123"
    assert (tmp_path / "program").read_bytes() == b"#!/bin/sh\n" * 1000
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc" / "link").readlink() == Path("odd")


def test_the_same_files_make_the_same_archive() -> None:
    def make() -> bytes:
        archive = CpioArchive()
        archive.folder("etc")
        archive.file("etc/passwd", b"root")
        return archive.finish()

    assert make() == make()


def test_a_module_comes_after_everything_it_needs() -> None:
    kernel = newest_kernel("6.1", Cache.of_user(), print)
    names = [module.name for module in modules_with_needs(kernel.modules, MODULES_AT_BOOT)]
    assert names.index("nfnetlink") < names.index("nf_tables")
    assert names.index("llc") < names.index("stp") < names.index("bridge")
    assert len(names) == len(set(names))


def test_modules_no_kernel_has_are_left_out() -> None:
    kernel = newest_kernel("6.1", Cache.of_user(), print)
    assert modules_with_needs(kernel.modules, ("no_such_module",)) == ()


@pytest.mark.parametrize("layout", ["data", "hole data", "data hole", "hole", "", "data hole data"])
def test_a_sparse_copy_has_the_same_bytes_and_the_same_holes(tmp_path: Path, layout: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    piece = 1 << 20
    with source.open("wb") as file:
        for part in layout.split():
            if part == "data":
                file.write(os.urandom(piece))
            else:
                file.seek(piece, os.SEEK_CUR)
        file.truncate()
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
