"""Newer QEMUs, from newer suites of the distribution, unpacked beside each other in the cache."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.guests.lab.apt_sources import EXTRA_SOURCES, machine_sources
from tests.guests.lab.cache import Cache, digest_of, read_record, write_atomically
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.kernel_series import DEBIAN, Distribution, mirror_of, private_apt
from tests.guests.lab.private_apt import PrivateApt
from tests.guests.lab.qemu import DISTRIBUTION, Qemu, chosen_name

__all__ = ["NEWER_QEMUS", "chosen_qemu", "qemu_named"]

PACKAGES = ("qemu-system-x86", "qemu-system-arm")
UNPACK_SECONDS = 600.0
UNPACK_VERSION = "1"
"""Changes when what is kept of the packages changes, so that older folders are made anew."""

LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale")
KIND = "qemus"


@dataclass(frozen=True, slots=True)
class QemuSuite:
    """This is a suite of a distribution that carries a QEMU, with the suites of updates for it."""

    distribution: Distribution
    suite: str
    updates: tuple[str, ...] = ()
    architecture: str = "amd64"


NEWER_QEMUS = {
    one.suite: one
    for one in (QemuSuite(DEBIAN, "trixie", ("trixie-security",)), QemuSuite(DEBIAN, "sid"))
}
"""Where newer ones come from, oldest first: in November 2026 they had 10.0 and 11.1."""


def _silent(_message: str) -> None:
    """Say nothing."""


def chosen_qemu(cache: Cache | None = None, say: Callable[[str], None] = _silent) -> Qemu:
    """This is the QEMU that the environment names, see `QEMU_VARIABLE`.

    Raises:
        LabError: as `qemu_named`.
    """
    return qemu_named(chosen_name(), cache, say)


def qemu_named(name: str, cache: Cache | None = None, say: Callable[[str], None] = _silent) -> Qemu:
    """This is the QEMU of that name, fetched if need be; offline, the newest one in the cache.

    Raises:
        MissingPartError: this machine knows no mirror that serves it.
        LabError: it is neither here nor to be had.
    """
    if name == DISTRIBUTION:
        return Qemu()
    if name not in NEWER_QEMUS:
        known = ", ".join((DISTRIBUTION, *NEWER_QEMUS))
        raise LabError(f"there is no QEMU called {name!r}", fix=f"take one of {known}")
    cache = cache or Cache.of_user()
    with cache.locked(f"newest-qemu-{name}"):
        try:
            return Qemu(name, _fetched(NEWER_QEMUS[name], cache, say) / "root")
        except LabError as error:
            cached = _remembered(name, cache)
            if cached is None:
                raise
            say(f"QEMU {name}: using the one in the cache, because {error.problem}")
            return Qemu(name, cached / "root")


def _remembered(name: str, cache: Cache) -> Path | None:
    known = read_record(_memory(name, cache)).get("folder", "")
    folder = cache.root / known
    return folder if known and (folder / "record.json").exists() else None


def _memory(name: str, cache: Cache) -> Path:
    return cache.folder(KIND) / f"{name}.json"


def _fetched(wanted: QemuSuite, cache: Cache, say: Callable[[str], None]) -> Path:
    """Return the folder of the suite's newest; the archive is asked only when its lists are fresh."""
    distribution = wanted.distribution
    if not mirror_of(wanted.suite, distribution, distribution.suites, machine_sources()):
        raise MissingPartError(
            f"no apt source of this machine serves {distribution.name}'s archive, so there is no"
            f" QEMU of suite {wanted.suite}",
            fix=f"write a sources file that names a mirror and set {EXTRA_SOURCES} to its path",
        )
    apt = private_apt(wanted, cache)
    apt.refresh()
    lists = str(apt.last_refresh)
    current = _remembered(wanted.suite, cache)
    if current and read_record(_memory(wanted.suite, cache)).get("lists") == lists:
        return current
    files = apt.with_needs(*PACKAGES)
    digest = digest_of(UNPACK_VERSION, *files)
    folder = cache.build(KIND, wanted.suite, digest, partial(_unpack, wanted, apt))
    known = {"folder": str(folder.relative_to(cache.root)), "lists": lists}
    write_atomically(_memory(wanted.suite, cache), json.dumps(known).encode())
    version = read_record(folder / "record.json")["version"]
    say(f"QEMU {wanted.suite}: {version}, in {len(files)} packages with all it needs")
    return folder


def _unpack(wanted: QemuSuite, apt: PrivateApt, folder: Path) -> dict[str, str]:
    root = folder / "root"
    root.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for package in apt.download_with_needs(PACKAGES, Path(scratch)):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=UNPACK_SECONDS)
    for name in LEFT_OUT:
        shutil.rmtree(root / name, ignore_errors=True)
    version = Qemu(wanted.suite, root).version()
    if not re.match(r"\d+\.\d+", version):
        raise LabError(
            f"the QEMU of suite {wanted.suite} does not start here",
            fix="run it by hand: "
            + " ".join(Qemu(wanted.suite, root).command("qemu-system-x86_64")),
        )
    return {"suite": wanted.suite, "version": version}
