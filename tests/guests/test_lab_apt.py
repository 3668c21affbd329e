"""Kernels come from signed packages by an apt of the lab's own, and the machine's apt notices nothing."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from tests.guests.lab import (
    KERNELS,
    NEWER_QEMUS,
    LabError,
    MissingPartError,
    newer_qemu,
    qemu_named,
)
from tests.guests.lab.apt_sources import (
    EXTRA_SOURCES,
    AptSource,
    machine_sources,
    parse_deb822,
    parse_one_line,
)
from tests.guests.lab.cache import Cache
from tests.guests.lab.kernel_series import DEBIAN, UBUNTU, mirror_of, private_apt, ubuntu_series
from tests.guests.lab.kernels import newest_kernel
from tests.guests.lab.private_apt import PrivateApt

ONE_LINE = """\
# a comment
deb http://mirror.example/debian bookworm main contrib # the archive
deb [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ] https://mirror.example/s a-security main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/etc/apt/keyrings/tool.gpg] https://tool.example/debian stable main
deb cdrom:[Debian]/ bookworm main
"""
DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
# a comment inside

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://keyed.example/debian
Suites: trixie
Components:
 main
 contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""


def test_reads_one_line_sources() -> None:
    assert [(s.uri, s.suite, s.components, s.keyring_name) for s in parse_one_line(ONE_LINE)] == [
        ("http://mirror.example/debian", "bookworm", ("main", "contrib"), ""),
        (
            "https://mirror.example/s",
            "a-security",
            ("main",),
            "a.gpg",
        ),
        ("https://tool.example/debian", "stable", ("main",), "tool.gpg"),
        ("cdrom:[Debian]/", "bookworm", ("main",), ""),
    ]


def test_reads_deb822_sources() -> None:
    found = list(parse_deb822(DEB822))
    assert [(s.uri, s.suite) for s in found[:4]] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://second.example/debian", "bookworm"),
        ("http://second.example/debian", "bookworm-updates"),
    ]
    assert found[4].components == ("main", "contrib")
    assert len(found) == 5


def test_reads_both_kinds_of_files_and_leaves_out_what_is_no_mirror(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (parts / "b.sources").write_text(DEB822)
    (parts / "a.list.save").write_text("deb http://saved.example/debian bookworm main\n")
    found = machine_sources(tmp_path)
    assert "http://second.example/debian" in {source.uri for source in found}
    assert not [s for s in found if s.uri.startswith(("cdrom", "http://saved"))]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([("http://a.example/debian", "bookworm", "")], "http://a.example/debian"),
        ([("http://a.example/debian", "stable", "")], "http://a.example/debian"),
        ([("https://tool.example/apt", "stable", "")], None),
        ([("https://tool.example/debian", "bookworm", "tool.gpg")], None),
        (
            [("http://a.example/debian", "bookworm", ""), ("http://old.example/x", "bullseye", "")],
            "http://old.example/x",
        ),
        ([("http://a.example/ubuntu", "noble", "")], None),
    ],
)
def test_takes_the_mirror_that_serves_debian(
    sources: list[tuple[str, str, str]], expected: str | None
) -> None:
    known = tuple(AptSource(uri, suite, ("main",), key) for uri, suite, key in sources)
    found = mirror_of("bullseye", DEBIAN, DEBIAN.suites, known)
    assert (found.uri if found else None) == expected


def test_takes_the_mirror_that_serves_ubuntu() -> None:
    known = (AptSource("http://a.example/ubuntu", "noble", ("main",)),)
    assert mirror_of("noble-updates", UBUNTU, UBUNTU.suites, known) == AptSource(
        "http://a.example/ubuntu", "noble-updates", ("main",)
    )


@pytest.mark.parametrize(
    ("series", "packages", "newest"),
    [
        ("6.1", ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-10-cloud-amd64"], 1),
        (
            "6.1",
            ["linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.1.0-10-cloud-amd64-dbg"],
            None,
        ),
        ("6.1", ["linux-image-6.1-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64-unsigned"], None),
        (
            "6.12",
            ["linux-image-6.12.9+deb13.1-cloud-amd64", "linux-image-6.12.9+deb13-cloud-amd64"],
            0,
        ),
        ("7.x", ["linux-image-7.9.9+deb14-cloud-amd64", "linux-image-7.10.1+deb14-cloud-amd64"], 1),
    ],
)
def test_takes_the_newest_image_by_its_name(
    series: str, packages: list[str], newest: int | None
) -> None:
    found = KERNELS[series].newest_image(packages)
    assert found == (None if newest is None else packages[newest])


def test_names_ubuntus_series_after_the_kernels_it_carries() -> None:
    packages = [
        "linux-image-unsigned-6.11.0-8-generic",
        "linux-image-unsigned-6.8.0-31-generic",
        "linux-image-unsigned-6.8.0-101-generic",
        "linux-image-unsigned-6.8.0-101-lowlatency",
    ]
    older, newer = ubuntu_series("noble", packages)
    assert (older.name, newer.name) == ("6.8", "6.11")
    assert older.newest_image(packages) == "linux-image-unsigned-6.8.0-101-generic"
    assert older.release_of(packages[1]) == "6.8.0-31-generic"


def _missing_suite(folder: Path, suite: str) -> PrivateApt:
    archive = folder / "archive"
    archive.mkdir()
    return PrivateApt(folder, AptSource(f"file:{archive}", suite, ("main",)), (), DEBIAN.keyring)


def test_a_vanished_suite_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="suite bullseye cannot be read") as refused:
        _missing_suite(tmp_path, "bullseye").refresh()
    assert "write a sources file" in refused.value.fix
    assert EXTRA_SOURCES in refused.value.fix


def test_a_refused_refresh_is_not_tried_again_at_once(tmp_path: Path) -> None:
    apt = _missing_suite(tmp_path, "bullseye")
    for _ in range(2):
        with pytest.raises(LabError, match="suite bullseye cannot be read"):
            apt.refresh()
    assert [path.name for path in tmp_path.glob("refused")] == ["refused"]


def test_a_suite_that_dropped_the_series_is_named_with_the_fix(
    tmp_path: Path, lab_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = dataclasses.replace(
        KERNELS["6.1"], image=re.compile(r"linux-image-(?P<release>2\.4\S*)")
    )
    monkeypatch.setitem(KERNELS, "6.1", gone)
    cache = Cache(tmp_path)
    shutil.copytree(lab_cache.root / "apt" / "bookworm", tmp_path / "apt" / "bookworm")
    with pytest.raises(LabError, match=r"suite bookworm has no 6\.1 kernel any more"):
        newest_kernel("6.1", cache, print)


@pytest.fixture(scope="module")
def lab_cache() -> Cache:
    """This is the user's cache with the 6.1 kernel in it."""
    cache = Cache.of_user()
    newest_kernel("6.1", cache, print)
    return cache


def test_offline_the_cached_kernel_will_do_and_is_said_to(
    tmp_path: Path, lab_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = newest_kernel("6.1", lab_cache, print)
    known = lab_cache.root / "kernels" / "6.1.json"
    folder = kernel.image.relative_to(lab_cache.root).parts[1]
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    shutil.copy(known, tmp_path / "cache" / "kernels")
    (tmp_path / "cache" / "kernels" / folder).symlink_to(lab_cache.root / "kernels" / folder)
    sources = tmp_path / "gone.list"
    sources.write_text(f"deb file:{tmp_path}/nothing bookworm main\n")
    monkeypatch.setenv(EXTRA_SOURCES, str(sources))
    said: list[str] = []
    offline = newest_kernel("6.1", Cache(tmp_path / "cache"), said.append)
    assert offline.version == kernel.version
    assert offline.image.exists()
    assert re.search(r"using \S+ from the cache, because suite bookworm cannot be read", said[0])


@pytest.fixture(scope="module")
def small_apt(tmp_path_factory: pytest.TempPathFactory) -> PrivateApt:
    """This reads the smallest suite there is, from the machine's own mirror."""
    apt = private_apt(KERNELS["6.1"], Cache(tmp_path_factory.mktemp("apt")))
    (security,) = apt.updates
    return dataclasses.replace(apt, source=security, updates=())


def _state_of_the_machines_apt() -> dict[str, tuple[int, int]]:
    folders = [
        Path("/etc/apt"),
        Path("/var/lib/apt"),
        Path("/var/cache/apt"),
        Path("/var/lib/dpkg"),
    ]
    paths = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return {str(p): (s.st_mtime_ns, s.st_size) for p in paths for s in (p.lstat(),)}


def test_the_machines_apt_is_left_alone(small_apt: PrivateApt, tmp_path: Path) -> None:
    before = _state_of_the_machines_apt()
    small_apt.refresh()
    (name,) = [n for n in small_apt.names("linux-doc") if n == "linux-doc"]
    stanza = small_apt.newest(name)
    assert stanza
    assert small_apt.download(stanza, tmp_path).stat().st_size > 0
    assert _state_of_the_machines_apt() == before


def test_a_package_comes_with_all_that_it_needs_and_the_machines_apt_is_left_alone(
    tmp_path: Path,
) -> None:
    before = _state_of_the_machines_apt()
    apt = private_apt(NEWER_QEMUS["trixie"], Cache.of_user())
    apt.refresh()
    files = apt.download_with_needs(("libfdt1",), tmp_path)
    assert {path.name.partition("_")[0] for path in files} >= {"libfdt1", "libc6", "gcc-14-base"}
    assert len(apt.with_needs("libfdt1")) == len(files)
    assert all(path.read_bytes().startswith(b"!<arch>\n") for path in files)
    assert _state_of_the_machines_apt() == before


def test_offline_the_cached_qemu_will_do_and_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = qemu_named("trixie", Cache.of_user())
    assert qemu.root is not None
    folder = qemu.root.parent
    (tmp_path / "cache" / "qemus").mkdir(parents=True)
    shutil.copy(folder.parent / "trixie.json", tmp_path / "cache" / "qemus")
    (tmp_path / "cache" / "qemus" / folder.name).symlink_to(folder)
    sources = tmp_path / "gone.list"
    sources.write_text(f"deb file:{tmp_path}/nothing trixie main\n")
    monkeypatch.setenv(EXTRA_SOURCES, str(sources))
    said: list[str] = []
    offline = qemu_named("trixie", Cache(tmp_path / "cache"), said.append)
    assert offline.version() == qemu.version()
    assert re.search(r"using the one in the cache, because suite trixie cannot be read", said[0])


def test_a_qemu_that_nobody_serves_is_a_missing_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newer_qemu, "machine_sources", lambda: machine_sources(tmp_path))
    with pytest.raises(MissingPartError, match="there is no QEMU of suite sid"):
        qemu_named("sid", Cache(tmp_path))
    with pytest.raises(LabError, match="no QEMU called 'other'") as refused:
        qemu_named("other", Cache(tmp_path))
    assert "distribution, trixie, sid" in refused.value.fix


def test_an_archive_whose_key_is_unknown_is_refused(small_apt: PrivateApt, tmp_path: Path) -> None:
    strangers = tmp_path / "strangers.gpg"
    strangers.write_bytes(b"")
    suspicious = dataclasses.replace(small_apt, folder=tmp_path, keyring=strangers)
    with pytest.raises(LabError, match=r"signature of suite .* cannot be checked") as refused:
        suspicious.refresh()
    assert "install the newest version" in refused.value.fix


@pytest.mark.parametrize("series", KERNELS)
def test_the_newest_kernel_of_each_series_is_resolved(series: str) -> None:
    kernel = newest_kernel(series, Cache.of_user(), print)
    assert kernel.release.startswith(series.removesuffix("x"))
    assert kernel.image.read_bytes()[0x202:0x206] != b"\0\0\0\0"  # boot protocol version, boot.rst
    assert kernel.modules.is_dir()
