"""Guest kernels: found by package name in the distribution's suites, downloaded, unpacked, never installed."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guests.lab.apt_sources import AptSource, machine_sources
from tests.guests.lab.cache import Cache, digest_of, forget, read_record, write_record
from tests.guests.lab.errors import LabError
from tests.guests.lab.private_apt import PackageStanza, PrivateApt

__all__ = ["KERNELS", "Kernel", "KernelSeries", "debug_vmlinux", "kernel_in_use"]

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_SUITES = re.compile(
    r"(?:old)*stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke"
)
SECURITY_SUITE = re.compile(r".+-security")
UNPACK_VERSION = "3"
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


@contextmanager
def kernel_in_use(
    series: str, cache: Cache, say: Callable[[str], None]
) -> Iterator[Kernel]:
    """This makes sure that the series' newest kernel is unpacked, and keeps it from being replaced.

    Raises:
        LabError: it is neither here nor to be had; the error names the suite and what to do.
    """
    with cache.locked(f"kernel-{series}"):
        _provide(KERNELS[series], cache, say)
    with cache.locked(f"kernel-{series}", shared=True):
        yield _kernel_of(read_record(cache.folder("kernels", series)), cache)


def _kernel_of(record: dict[str, str], cache: Cache) -> Kernel:
    root = cache.root / "kernels" / record["series"] / "root"
    modules = next(root.glob(f"**/lib/modules/{record['release']}"))
    image = root / "boot" / f"vmlinuz-{record['release']}"
    return Kernel(
        series=record["series"],
        package=record["package"],
        version=record["version"],
        release=record["release"],
        image=image if image.exists() else modules / "vmlinuz",  # Debian moved it between 6.12 and 7.2
        modules=modules,
    )


def _provide(series: KernelSeries, cache: Cache, say: Callable[[str], None]) -> None:
    """Unpack the newest kernel unless it is here already; offline, what is here will do."""
    folder = cache.folder("kernels", series.name)
    record = read_record(folder)
    try:
        apt = private_apt(series, cache)
        apt.refresh()
        if record.get("unpack") == UNPACK_VERSION and float(record["resolved"]) >= apt.last_refresh:
            return
        packages = _kernel_packages(series, apt)
    except LabError as error:
        if record.get("unpack") != UNPACK_VERSION:
            raise
        say(f"kernel {series.name}: using {record['version']} from the cache, because {error.problem}")
        return
    wanted = digest_of(UNPACK_VERSION, *(f"{p.name}={p.version} {p.sha256}" for p in packages))
    resolved = {"resolved": str(apt.last_refresh)}
    if record.get("digest") == wanted:
        write_record(folder, record | resolved)
        return
    forget(folder)
    _unpack(apt, packages, cache.folder("kernels", series.name) / "root")
    image = packages[0]
    write_record(
        folder,
        {
            "series": series.name,
            "suite": series.suite,
            "package": image.name,
            "version": image.version,
            "release": _release_of(image),
            "digest": wanted,
            "unpack": UNPACK_VERSION,
            **resolved,
        },
    )
    say(f"kernel {series.name}: {image.name} {image.version} from {series.suite}")


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


def _unpack(apt: PrivateApt, packages: tuple[PackageStanza, ...], root: Path) -> None:
    root.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        for stanza in packages:
            package = apt.download(stanza, Path(scratch))
            subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=300)
    shutil.rmtree(root / "usr" / "share" / "doc", ignore_errors=True)


def debug_vmlinux(series: str, cache: Cache, say: Callable[[str], None]) -> Path:
    """This is the kernel's ELF file with DWARF, about 300 MB to fetch: for comparisons with other tools."""
    with kernel_in_use(series, cache, say) as kernel, cache.locked(f"debug-{series}"):
        folder = cache.folder("debug", series)
        record = read_record(folder)
        if record.get("version") != kernel.version:
            forget(folder)
            apt = private_apt(KERNELS[series], cache)
            stanza = apt.newest(f"linux-image-{kernel.release}-dbg")
            if stanza is None or stanza.version != kernel.version:
                raise LabError(
                    f"{KERNELS[series].suite} has no debug package for {kernel.package} {kernel.version}",
                    fix="try again when the archive has published it",
                )
            _unpack(apt, (stanza,), cache.folder("debug", series) / "root")
            (vmlinux,) = (folder / "root").glob("usr/lib/debug/**/vmlinux-*")
            write_record(folder, {"version": kernel.version, "vmlinux": str(vmlinux)})
            say(f"debug information {series}: {stanza.name} {stanza.version}")
        return Path(read_record(folder)["vmlinux"])
