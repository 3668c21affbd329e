"""An apt of our own: its own lists, cache and sources, so that nothing of the machine's apt is touched.

References: apt.conf(5), apt-get(8), apt-cache(8).
"""

import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.guests.lab.apt_sources import EXTRA_SOURCES, AptSource
from tests.guests.lab.cache import write_atomically
from tests.guests.lab.errors import LabError, MissingPartError

__all__ = ["PackageStanza", "PrivateApt"]

REFRESH_SECONDS = 24 * 3600
"""Package lists are asked for at most once a day: a kernel update may wait that long."""

RETRY_SECONDS = 3600
"""After a refresh failed, an hour goes by before the next try, so that working offline stays quick."""

COMMAND_SECONDS = 1800
"""One apt command, a debug kernel of 300 MB over a slow line included."""

QUOTED_ERROR_LINES = 6
"""Lines of apt's own message that an error repeats."""

WITH_NEEDS = ("install", "--yes", "--no-install-recommends")

SETTING = re.compile(r'(?P<key>Acquire::[^ ]+) "(?P<value>.*)";')


@dataclass(frozen=True, slots=True)
class PackageStanza:
    """This is what the archive's index says of one package."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PrivateApt:
    """This runs apt on a folder of its own, with signatures checked against one keyring.

    Attributes:
        folder: where lists, cache and configuration live.
        source: the archive and suite that must be there.
        updates: suites that are left out when they are not served, as those of an old release.
        keyring: the file that must hold the key each Release file is signed with.
        architecture: whose packages are wanted, in the distribution's own word.
    """

    folder: Path
    source: AptSource
    updates: tuple[AptSource, ...]
    keyring: Path
    architecture: str = "amd64"

    @property
    def last_refresh(self) -> float:
        """This is when the package lists were last fetched, in seconds of the epoch; 0 for never."""
        stamp = self.folder / "refreshed"
        return stamp.stat().st_mtime if stamp.exists() else 0.0

    def refresh(self) -> None:
        """This makes the package lists at most a day old.

        Raises:
            LabError: the archive does not serve the suite, or its signature is not known here.
        """
        if self._age("refreshed") < REFRESH_SECONDS:
            return
        if self._age("refused") < RETRY_SECONDS:
            self._refuse((self.folder / "refused").read_text())
        self._configure(self.source, *self.updates)
        ended = self._run("apt-get", "update")
        if ended.returncode and self.updates:
            self._configure(self.source)
            ended = self._run("apt-get", "update")
        if ended.returncode:
            write_atomically(self.folder / "refused", ended.stderr.encode())
            self._refuse(ended.stderr)
        (self.folder / "refused").unlink(missing_ok=True)
        write_atomically(self.folder / "refreshed", b"")

    def names(self, start: str) -> tuple[str, ...]:
        """These are the packages whose name starts like that."""
        return tuple(sorted(self._asked("apt-cache", "pkgnames", start).split()))

    def newest(self, name: str) -> PackageStanza | None:
        """This is the newest version of a package in these suites; None when there is none."""
        shown = self._run("apt-cache", "show", "--no-all-versions", name)
        return _parse_stanza(shown.stdout) if shown.returncode == 0 else None

    def download(self, stanza: PackageStanza, into: Path) -> Path:
        """This fetches one package file, its hash checked by apt against the signed index."""
        before = set(into.glob("*.deb"))
        self._asked("apt-get", "download", f"{stanza.name}={stanza.version}", into=into)
        (package,) = set(into.glob("*.deb")) - before
        return package

    def with_needs(self, *names: str) -> tuple[str, ...]:
        """This is one line of the index for each package file that these need, themselves included.

        What is only recommended is left out, and nothing counts as installed.
        """
        listed = self._asked("apt-get", *WITH_NEEDS, "--print-uris", *names)
        return tuple(line for line in listed.splitlines() if line.startswith("'"))

    def download_with_needs(self, names: Iterable[str], into: Path) -> tuple[Path, ...]:
        """This fetches packages and all they need, their hashes checked by apt against the signed index."""
        (into / "partial").mkdir()
        archives = ("-o", f"Dir::Cache::archives={into}")
        self._asked("apt-get", *WITH_NEEDS, "--download-only", *archives, *names)
        return tuple(sorted(into.glob("*.deb")))

    def _configure(self, *sources: AptSource) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lines = [
            f"deb [arch={self.architecture} signed-by={self.keyring}] {source.uri} "
            + " ".join((source.suite, *source.components))
            for source in sources
        ]
        write_atomically(self.folder / "sources.list", "\n".join([*lines, ""]).encode())
        # The machine's settings for fetching (proxies above all) hold here too; its hooks do not.
        settings = {
            **_machine_settings(),
            "Dir::State": f"{self.folder}/state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": f"{self.folder}/cache",
            "Dir::Etc::parts": f"{self.folder}/etc",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": f"{self.folder}/etc",
            "Dir::Etc::sourcelist": f"{self.folder}/sources.list",
            "Dir::Etc::sourceparts": f"{self.folder}/etc",
            "Dir::Log": f"{self.folder}/cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",  # apt's own user cannot reach a private folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        write_atomically(self.folder / "apt.conf", text.encode())

    def _age(self, stamp: str) -> float:
        try:
            return time.time() - (self.folder / stamp).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _refuse(self, message: str) -> None:
        said = "\n".join(line for line in message.splitlines() if line.startswith(("E:", "W:")))
        if "NO_PUBKEY" in message or "EXPKEYSIG" in message:
            raise LabError(
                f"the signature of suite {self.source.suite} cannot be checked with {self.keyring}:\n{said}",
                fix="install the newest version of the package that holds this keyring "
                "(debian-archive-keyring, from a newer release of the distribution if need be)",
            )
        raise LabError(
            f"suite {self.source.suite} cannot be read from {self.source.uri}:\n"
            + "\n".join(said.splitlines()[-QUOTED_ERROR_LINES:]),
            fix="check that the network is up; if the suite has been moved to the archive of old "
            f"releases, write a sources file that names a mirror which still serves {self.source.suite} "
            f"and set {EXTRA_SOURCES} to its path",
        )

    def _asked(self, *command: str, into: Path | None = None) -> str:
        ended = self._run(*command, into=into)
        if ended.returncode:
            raise LabError(
                f"{' '.join(command)} failed:\n{ended.stderr.strip()}",
                fix=f"remove {self.folder} and try again with the network up",
            )
        return ended.stdout

    def _run(self, *command: str, into: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": f"{self.folder}/apt.conf", "LC_ALL": "C.UTF-8"}
        try:
            return subprocess.run(
                [*command, "-q"] if command[0] == "apt-get" else command,
                cwd=into or self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise MissingPartError(
                f"{command[0]} is not on this machine",
                fix="guest kernels are taken from Debian or Ubuntu packages: run this there",
            ) from error


def _machine_settings() -> dict[str, str]:
    """These are the machine's own settings for fetching files: proxies, certificates, date checks."""
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    settings = (SETTING.fullmatch(line) for line in dump.splitlines())
    return {
        found["key"]: found["value"]
        for found in settings
        if found and "IndexTargets" not in found["key"] and not found["key"].endswith("::")
    }


def _parse_stanza(text: str) -> PackageStanza:
    fields = dict(
        line.split(": ", 1) for line in text.splitlines() if ": " in line and line[0] != " "
    )
    return PackageStanza(fields["Package"], fields["Version"], fields.get("SHA256", ""))
