"""Which kernels guests can run and which distribution's suites carry them."""

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.guests.lab.apt_sources import EXTRA_SOURCES, AptSource, machine_sources
from tests.guests.lab.cache import Cache
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.private_apt import PrivateApt

__all__ = [
    "ARM64_KERNELS",
    "DEBIAN",
    "KERNELS",
    "UBUNTU",
    "Distribution",
    "KernelSeries",
    "kernel_series",
    "mirror_of",
    "private_apt",
    "ubuntu_series",
]


@dataclass(frozen=True, slots=True)
class Distribution:
    """This is an archive of packages and how to know that it is genuine.

    Attributes:
        suites: the names its suites have; a mirror that serves one of them serves them all.
        security: the same for the suites of its security archive.
        keyring: the file with its signing keys; `keyring_package` installs it.
    """

    name: str
    suites: re.Pattern[str]
    security: re.Pattern[str]
    keyring: Path
    keyring_package: str


DEBIAN = Distribution(
    "Debian",
    re.compile(r"(?:old)*stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke"),
    re.compile(r"(?:(?:old)*stable|testing|buster|bullseye|bookworm|trixie|forky|duke)-security"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "debian-archive-keyring",
)
UBUNTU = Distribution(
    "Ubuntu",
    re.compile(r"[a-z]+"),
    re.compile(r"[a-z]+-(?:security|updates)"),
    Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
    "ubuntu-keyring",
)


ANY_UBUNTU_IMAGE = re.compile(r"linux-image-unsigned-(?P<release>\d\S*-generic)")


@dataclass(frozen=True, slots=True)
class KernelSeries:
    """This is one line of kernels a guest can run, and where it comes from.

    Attributes:
        name: what a test calls it.
        suite: the suite that carries it.
        updates: suites with updates for it, used where they are served.
        image: the name of its image packages; the group ``release`` is what ``uname -r`` says.
        architecture: what processors it is for, in the distribution's word.
    """

    name: str
    distribution: Distribution
    suite: str
    updates: tuple[str, ...]
    image: re.Pattern[str]
    architecture: str = "amd64"

    def release_of(self, package: str) -> str:
        """This is what ``uname -r`` says with an image package of this series; empty for any other."""
        found = self.image.fullmatch(package)
        return found["release"] if found else ""

    def newest_image(self, packages: Iterable[str]) -> str | None:
        """This is the image package with the highest release; None when there is none of this series."""
        images = (name for name in packages if self.release_of(name))
        return max(images, key=lambda name: _numbers(self.release_of(name)), default=None)


def _numbers(release: str) -> list[int]:
    """Order releases as people do: 6.1.0-9 before 6.1.0-10."""
    return [int(digits) for digits in re.findall(r"\d+", re.sub("amd64|arm64", "", release))]


def _debian(
    name: str, suite: str, *updates: str, releases: str, architecture: str = "amd64"
) -> KernelSeries:
    image = re.compile(rf"linux-image-(?P<release>{releases}\S*-cloud-{architecture})")
    return KernelSeries(name, DEBIAN, suite, updates, image, architecture)


KERNELS = {
    series.name: series
    for series in (
        _debian("5.10", "bullseye", "bullseye-security", releases=r"5\.10\."),
        _debian("6.1", "bookworm", "bookworm-security", releases=r"6\.1\."),
        _debian("6.12", "trixie", "trixie-security", releases=r"6\.12\."),
        _debian("7.x", "sid", releases=r"7\."),
    )
}
"""What a machine whose apt knows a Debian mirror can run, oldest first."""

ARM64_KERNELS = {
    series.name: series
    for series in (
        _debian(
            *("6.12-arm64", "trixie", "trixie-security"),
            releases=r"6\.12\.",
            architecture="arm64",
        ),
        _debian("7.x-arm64", "sid", releases=r"7\.", architecture="arm64"),
    )
}
"""The same for the aarch64 guests of QEMU's machine type ``virt``.

Debian's arm64 kernels before 6.12 were built without ``CONFIG_KALLSYMS_ALL``: they do not name their data.
"""


def kernel_series(cache: Cache) -> dict[str, KernelSeries]:
    """These are the series this machine can fetch: Debian's, or on Ubuntu what its own suites carry."""
    if not _is_ubuntu() or mirror_of("sid", DEBIAN, DEBIAN.suites, machine_sources()):
        return KERNELS | ARM64_KERNELS
    return {series.name: series for series in _host_ubuntu_series(cache)}


def _is_ubuntu() -> bool:
    try:
        return platform.freedesktop_os_release()["ID"] == "ubuntu"
    except OSError:
        return False


def _host_ubuntu_series(cache: Cache) -> tuple[KernelSeries, ...]:
    """List what the suites of the running release hold.

    Written from Ubuntu's package names and not yet run there.
    """
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    any_series = KernelSeries("any", UBUNTU, suite, _ubuntu_updates(suite), ANY_UBUNTU_IMAGE)
    apt = private_apt(any_series, cache)
    apt.refresh()
    return ubuntu_series(suite, apt.names("linux-image-unsigned-"))


def _ubuntu_updates(suite: str) -> tuple[str, ...]:
    return f"{suite}-updates", f"{suite}-security"


def ubuntu_series(suite: str, packages: Iterable[str]) -> tuple[KernelSeries, ...]:
    """These are the series of a suite, named after the kernels in it, oldest first."""
    found = (ANY_UBUNTU_IMAGE.fullmatch(name) for name in packages)
    names = {".".join(match["release"].split(".")[:2]) for match in found if match}
    return tuple(
        KernelSeries(
            *(name, UBUNTU, suite, _ubuntu_updates(suite)),
            re.compile(rf"linux-image-unsigned-(?P<release>{re.escape(name)}\.\S*-generic)"),
        )
        for name in sorted(names, key=_numbers)
    )


class InSuite(Protocol):
    """This is something that a suite of a distribution carries, with updates in others."""

    @property
    def distribution(self) -> Distribution: ...

    @property
    def suite(self) -> str: ...

    @property
    def updates(self) -> tuple[str, ...]: ...

    @property
    def architecture(self) -> str: ...


def private_apt(series: InSuite, cache: Cache) -> PrivateApt:
    """This is the apt that reads the series' suites, on mirrors taken from the machine's own sources.

    Raises:
        LabError: no source of the machine serves the distribution, or its keys are missing.
    """
    sources = machine_sources()
    distribution = series.distribution
    main = mirror_of(series.suite, distribution, distribution.suites, sources)
    if main is None:
        raise LabError(
            f"no apt source of this machine serves {distribution.name}'s archive, so suite "
            f"{series.suite} has no mirror",
            fix=f"write a sources file that names a mirror and set {EXTRA_SOURCES} to its path",
        )
    if not distribution.keyring.exists():
        raise MissingPartError(
            f"{distribution.keyring} is missing: {distribution.name}'s signatures cannot be checked",
            fix=f"apt-get install {distribution.keyring_package}",
        )
    updates = (
        mirror_of(suite, distribution, distribution.security, sources) for suite in series.updates
    )
    architecture = series.architecture
    mine = series.suite if architecture == "amd64" else f"{series.suite}-{architecture}"
    return PrivateApt(
        cache.folder("apt", mine),
        main,
        tuple(found for found in updates if found),
        distribution.keyring,
        architecture,
    )


def mirror_of(
    suite: str, distribution: Distribution, kin: re.Pattern[str], sources: tuple[AptSource, ...]
) -> AptSource | None:
    """This is a mirror for a suite: one set up for it, else one set up for a suite of its kind.

    Other archives name their suites "stable" too, so a mirror must carry the distribution's name in its
    address or be set up for the very suite, and must not be bound to another archive's keys.
    """

    def unlikeliness(source: AptSource) -> tuple[bool, bool]:
        named = source.chosen or distribution.name.lower() in source.uri.lower()
        return source.suite != suite, not named

    fitting = [
        source
        for source in sources
        if source.keyring_name in {"", distribution.keyring.name}
        and (source.suite == suite or (kin.fullmatch(source.suite) and not unlikeliness(source)[1]))
    ]
    best = min(fitting, key=unlikeliness, default=None)
    return AptSource(best.uri, suite, ("main",)) if best else None
