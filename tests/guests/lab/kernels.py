"""Guest kernels: found by package name in a distribution's suites, unpacked, never installed."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.guests.lab.apt_sources import EXTRA_SOURCES
from tests.guests.lab.cache import Cache, digest_of, read_record, write_atomically
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.kernel_series import KernelSeries, kernel_series, private_apt
from tests.guests.lab.private_apt import PackageStanza, PrivateApt

__all__ = ["Kernel", "debug_vmlinux", "newest_kernel"]

SPLIT_PACKAGES = ("linux-binary-{}", "linux-modules-{}")
TOOLBOX = "busybox-static"
"""Comes with the kernels of other architectures than the machine's, whose own cannot run there."""
UNPACK_SECONDS = 600.0
UNPACK_VERSION = "4"
"""Changes when what is kept of a package changes, so that older folders are made anew."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """This is an unpacked kernel.

    Attributes:
        series: the name it was asked for by.
        package: the image package; `version` is the package's.
        release: what ``uname -r`` says in the guest.
        image: the bzImage, or arm64's Image; `modules` is the folder of its modules.
        architecture: in Debian's word.
        busybox: a static one for guests of this architecture; None for the machine's own.
    """

    series: str
    package: str
    version: str
    release: str
    image: Path
    modules: Path
    architecture: str = "amd64"
    busybox: Path | None = None


def newest_kernel(series: str, cache: Cache, say: Callable[[str], None]) -> Kernel:
    """This is the series' newest kernel, fetched if need be; offline, the newest that is in the cache.

    Raises:
        LabError: it is neither here nor to be had; the error names the suite and what to do.
    """
    wanted = series_named(series, cache)
    with cache.locked(f"newest-{series}"):
        try:
            return _kernel_in(_fetched(wanted, cache, say))
        except LabError as error:
            cached = _cached(wanted, cache)
            if cached is None:
                raise
            say(f"kernel {series}: using {cached.version} from the cache, because {error.problem}")
            return cached


def series_named(name: str, cache: Cache) -> KernelSeries:
    """This is the series of that name.

    Raises:
        MissingPartError: this machine's distribution has none of that name.
    """
    known = kernel_series(cache)
    if name not in known:
        raise MissingPartError(
            f"there is no {name} kernel here",
            fix=f"take one of {', '.join(known)}, or name a Debian mirror in {EXTRA_SOURCES}",
        )
    return known[name]


def _cached(series: KernelSeries, cache: Cache) -> Kernel | None:
    folder = cache.root / read_record(cache.folder("kernels") / f"{series.name}.json").get(
        "folder", ""
    )
    return _kernel_in(folder) if (folder / "record.json").exists() else None


def _kernel_in(folder: Path) -> Kernel:
    record = read_record(folder / "record.json")
    modules = folder / record["modules"]
    image = folder / "root" / "boot" / f"vmlinuz-{record['release']}"
    return Kernel(
        series=record["series"],
        package=record["package"],
        version=record["version"],
        release=record["release"],
        image=image
        if image.exists()
        else modules / "vmlinuz",  # Debian moved it between 6.12 and 7.2
        modules=modules,
        architecture=record.get("architecture", "amd64"),
        busybox=folder / record["busybox"] if "busybox" in record else None,
    )


def _fetched(series: KernelSeries, cache: Cache, say: Callable[[str], None]) -> Path:
    """Return the newest kernel's folder; the archive is asked only when its lists are fresh."""
    apt = private_apt(series, cache)
    apt.refresh()
    memory = cache.folder("kernels") / f"{series.name}.json"
    known = read_record(memory)
    current = cache.root / known.get("folder", "")
    if known.get("lists") == str(apt.last_refresh) and (current / "record.json").exists():
        return current
    packages = _kernel_packages(series, apt)
    digest = digest_of(UNPACK_VERSION, *(f"{p.name}={p.version} {p.sha256}" for p in packages))
    folder = cache.build("kernels", series.name, digest, partial(_unpack, series, apt, packages))
    known = {"folder": str(folder.relative_to(cache.root)), "lists": str(apt.last_refresh)}
    write_atomically(memory, json.dumps(known).encode())
    say(f"kernel {series.name}: {packages[0].name} {packages[0].version} from {series.suite}")
    return folder


def _kernel_packages(series: KernelSeries, apt: PrivateApt) -> tuple[PackageStanza, ...]:
    """Return the newest image the archive lists, with the packages that newer releases split off it."""
    name = series.newest_image(apt.names("linux-image-"))
    image = apt.newest(name) if name else None
    if image is None:
        raise LabError(
            f"suite {series.suite} has no {series.name} kernel any more",
            fix=f"name the suite that carries one today in KERNELS ({KernelSeries.__module__})",
        )
    parts = [apt.newest(part.format(series.release_of(image.name))) for part in SPLIT_PACKAGES]
    packages = (image, *(part for part in parts if part and part.version == image.version))
    return packages if series.architecture == "amd64" else (*packages, _toolbox(series, apt))


def _toolbox(series: KernelSeries, apt: PrivateApt) -> PackageStanza:
    found = apt.newest(TOOLBOX)
    if found is None:
        raise LabError(
            f"suite {series.suite} has no {TOOLBOX} for {series.architecture}",
            fix=f"name the package that carries it today in TOOLBOX ({__name__})",
        )
    return found


def _unpack(
    series: KernelSeries, apt: PrivateApt, packages: tuple[PackageStanza, ...], folder: Path
) -> dict[str, str]:
    root = _unpack_packages(apt, packages, folder)
    image = packages[0]
    release = series.release_of(image.name)
    places = (root / "lib" / "modules" / release, root / "usr" / "lib" / "modules" / release)
    modules = next(place for place in places if place.exists())
    record = {
        "series": series.name,
        "suite": series.suite,
        "package": image.name,
        "version": image.version,
        "release": release,
        "modules": str(modules.relative_to(folder)),
        "architecture": series.architecture,
    }
    if packages[-1].name == TOOLBOX:
        busybox = next(path for path in root.rglob("bin/busybox") if not path.is_symlink())
        record["busybox"] = str(busybox.relative_to(folder))
    return record


def _unpack_packages(apt: PrivateApt, packages: tuple[PackageStanza, ...], folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for stanza in packages:
            package = apt.download(stanza, Path(scratch))
            subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=UNPACK_SECONDS)
    shutil.rmtree(root / "usr" / "share" / "doc", ignore_errors=True)
    return root


def debug_vmlinux(series: str, cache: Cache, say: Callable[[str], None]) -> Path:
    """This is the kernel's ELF file with DWARF, about 300 MB to fetch: for comparisons with other tools.

    Raises:
        LabError: the archive has none for the kernel that guests run.
    """
    kernel = newest_kernel(series, cache, say)
    digest = digest_of(UNPACK_VERSION, kernel.package, kernel.version)
    folder = cache.build("debug", series, digest, partial(_unpack_debug, kernel, cache))
    return folder / read_record(folder / "record.json")["vmlinux"]


def _unpack_debug(kernel: Kernel, cache: Cache, folder: Path) -> dict[str, str]:
    series = series_named(kernel.series, cache)
    apt = private_apt(series, cache)
    stanza = apt.newest(f"linux-image-{kernel.release}-dbg")
    if stanza is None or stanza.version != kernel.version:
        raise LabError(
            f"{series.suite} has no debug package for {kernel.package} {kernel.version}",
            fix="try again when the archive has published it",
        )
    root = _unpack_packages(apt, (stanza,), folder)
    found = (root / "usr" / "lib" / "debug").rglob(f"vmlinux-{kernel.release}")
    vmlinux = next(path for path in found if not path.is_symlink())
    return {"version": kernel.version, "vmlinux": str(vmlinux.relative_to(folder))}
