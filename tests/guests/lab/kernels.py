"""Guest kernels: found by package name in the distribution's suites, downloaded, unpacked, never installed."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.guests.lab.apt_sources import AptSource, machine_sources
from tests.guests.lab.cache import Cache, digest_of, read_record, write_atomically
from tests.guests.lab.errors import LabError
from tests.guests.lab.private_apt import PackageStanza, PrivateApt

__all__ = ["KERNELS", "Kernel", "KernelSeries", "debug_vmlinux", "newest_kernel"]

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_SUITES = re.compile(
    r"(?:old)*stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke"
)
SECURITY_SUITE = re.compile(r".+-security")
UNPACK_SECONDS = 600.0
UNPACK_VERSION = "4"
"""Changes when what is kept of a package changes, so that older folders are made anew."""


@dataclass(frozen=True, slots=True)
class KernelSeries:
    """This is one line of kernels a guest can run, and where it comes from.

    Attributes:
        name: what a test calls it.
        suite: the distribution suite that carries it.
        security: the suite with its security updates; empty where the suite itself is updated.
        meta_package: the package that depends on the newest image.
        release: what ``uname -r`` must look like; a suite moves on to newer kernels one day.
    """

    name: str
    suite: str
    security: str
    meta_package: str
    release: re.Pattern[str]


KERNELS = {
    series.name: series
    for series in (
        KernelSeries(
            "5.10", "bullseye", "bullseye-security", "linux-image-cloud-amd64", re.compile(r"5\.10\.")
        ),
        KernelSeries(
            "6.1", "bookworm", "bookworm-security", "linux-image-cloud-amd64", re.compile(r"6\.1\.")
        ),
        KernelSeries(
            "6.12", "trixie", "trixie-security", "linux-image-cloud-amd64", re.compile(r"6\.12\.")
        ),
        KernelSeries("7.x", "sid", "", "linux-image-cloud-amd64", re.compile(r"7\.")),
    )
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """This is an unpacked kernel.

    Attributes:
        series: the name it was asked for by.
        package: the image package; `version` is the package's.
        release: what ``uname -r`` says in the guest.
        image: the bzImage; `modules` is the folder of its modules.
    """

    series: str
    package: str
    version: str
    release: str
    image: Path
    modules: Path


def newest_kernel(series: str, cache: Cache, say: Callable[[str], None]) -> Kernel:
    """This is the series' newest kernel, fetched if need be; offline, the newest that is in the cache.

    Raises:
        LabError: it is neither here nor to be had; the error names the suite and what to do.
    """
    wanted = KERNELS[series]
    with cache.locked(f"newest-{series}"):
        try:
            return _kernel_in(_fetched(wanted, cache, say))
        except LabError as error:
            cached = _cached(wanted, cache)
            if cached is None:
                raise
            say(f"kernel {series}: using {cached.version} from the cache, because {error.problem}")
            return cached


def _cached(series: KernelSeries, cache: Cache) -> Kernel | None:
    folder = cache.root / read_record(cache.folder("kernels") / f"{series.name}.json").get("folder", "")
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
        image=image if image.exists() else modules / "vmlinuz",  # Debian moved it between 6.12 and 7.2
        modules=modules,
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


def private_apt(series: KernelSeries, cache: Cache) -> PrivateApt:
    """This is the apt that reads the series' suites, on mirrors taken from the machine's own sources."""
    sources = machine_sources()
    main = _mirror_of(series.suite, sources, DEBIAN_SUITES)
    security = _mirror_of(series.security, sources, SECURITY_SUITE) if series.security else None
    if main is None:
        raise LabError(
            f"no apt source of this machine serves Debian's archive, so suite {series.suite} "
            "has no mirror",
            fix="add a Debian mirror to a sources file and set QVMI_GUEST_SOURCES to its path",
        )
    if not DEBIAN_KEYRING.exists():
        raise LabError(
            f"{DEBIAN_KEYRING} is missing: Debian's signatures cannot be checked",
            fix="apt-get install debian-archive-keyring",
        )
    return PrivateApt(
        cache.folder("apt", series.suite), (main,), (security,) if security else (), DEBIAN_KEYRING
    )


def _mirror_of(
    suite: str, sources: tuple[AptSource, ...], kin: re.Pattern[str]
) -> AptSource | None:
    """Name the mirror for a suite: one that is set up for it, else one set up for a suite of its kind."""
    exact = (source for source in sources if source.suite == suite)
    like = (source for source in sources if kin.fullmatch(source.suite))
    found = next(exact, None) or next(like, None)
    return AptSource(found.uri, suite, ("main",)) if found else None


def _kernel_packages(series: KernelSeries, apt: PrivateApt) -> tuple[PackageStanza, ...]:
    """Follow the meta package to the image, and the image to the parts that hold its files."""
    meta = apt.newest(series.meta_package)
    image_name = next((name for name in meta.depends if _is_image(name)), "") if meta else ""
    image = apt.newest(image_name) if image_name else None
    if image is None or not series.release.match(_release_of(image)):
        offered = _release_of(image) if image else "no kernel at all"
        raise LabError(
            f"suite {series.suite} was to have a {series.name} kernel and has {offered}",
            fix=f"name the suite that carries {series.name} today in KERNELS ({__name__})",
        )
    parts = [name for name in image.depends if name.startswith(("linux-binary-", "linux-modules-"))]
    stanzas = [apt.newest(name) for name in parts]
    return (image, *(stanza for stanza in stanzas if stanza))


def _is_image(name: str) -> bool:
    return re.match(r"linux-image-\d", name) is not None


def _release_of(image: PackageStanza) -> str:
    return image.name.removeprefix("linux-image-").removeprefix("unsigned-")


def _unpack(
    series: KernelSeries, apt: PrivateApt, packages: tuple[PackageStanza, ...], folder: Path
) -> dict[str, str]:
    root = _unpack_packages(apt, packages, folder)
    image = packages[0]
    release = _release_of(image)
    places = (root / "lib" / "modules" / release, root / "usr" / "lib" / "modules" / release)
    modules = next(place for place in places if place.exists())
    return {
        "series": series.name,
        "suite": series.suite,
        "package": image.name,
        "version": image.version,
        "release": release,
        "modules": str(modules.relative_to(folder)),
    }


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
    apt = private_apt(KERNELS[kernel.series], cache)
    stanza = apt.newest(f"linux-image-{kernel.release}-dbg")
    if stanza is None or stanza.version != kernel.version:
        raise LabError(
            f"{KERNELS[kernel.series].suite} has no debug package for {kernel.package} {kernel.version}",
            fix="try again when the archive has published it",
        )
    root = _unpack_packages(apt, (stanza,), folder)
    found = (root / "usr" / "lib" / "debug").rglob(f"vmlinux-{kernel.release}")
    vmlinux = next(path for path in found if not path.is_symlink())
    return {"version": kernel.version, "vmlinux": str(vmlinux.relative_to(folder))}
