"""Files by which somebody stays in a system: cron tables, keys, units, profiles, preloaded libraries.

What such files hold is the system's own business when they are seen first. What is made or changed while
somebody looks on, and what downloads and runs something, is not.

References: MITRE ATT&CK T1053.003 Cron, T1098.004 SSH Authorized Keys, T1543.002 Systemd Service,
T1546.004 Unix Shell Configuration Modification, T1037.004 RC Scripts, T1574.006 Dynamic Linker Hijacking,
T1548.003 Sudo and Sudo Caching, T1136.001 Local Account, T1546.017 Udev Rules, T1556.003 Pluggable
Authentication Modules; inode(7) (``st_ctime``).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.codepack import Finding, Severity, Unseen
from qvmi.codepacks.detectors.bad_lines import bad_line
from qvmi.codepacks.detectors.file_watch import MAX_CONTENT, FileWatch, content_of, is_named
from qvmi.codepacks.detectors.process_evidence import Fact, seen, short
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import CachedFile, GuestOS

__all__ = ["Persistence"]

TECHNIQUES: Final = {
    "/etc/crontab": "T1053.003",
    "/etc/cron.d/": "T1053.003",
    "/etc/cron.hourly/": "T1053.003",
    "/etc/cron.daily/": "T1053.003",
    "/etc/cron.weekly/": "T1053.003",
    "/etc/cron.monthly/": "T1053.003",
    "/var/spool/cron/": "T1053.003",
    "/.ssh/authorized_keys": "T1098.004",
    "/.ssh/authorized_keys2": "T1098.004",
    "/etc/systemd/system/": "T1543.002",
    "/usr/lib/systemd/system/": "T1543.002",
    "/usr/local/lib/systemd/system/": "T1543.002",
    "/lib/systemd/system/": "T1543.002",
    "/.config/systemd/user/": "T1543.002",
    "/etc/profile": "T1546.004",
    "/etc/profile.d/": "T1546.004",
    "/etc/bash.bashrc": "T1546.004",
    "/.bashrc": "T1546.004",
    "/.bash_profile": "T1546.004",
    "/.profile": "T1546.004",
    "/etc/rc.local": "T1037.004",
    "/etc/init.d/": "T1037.004",
    "/etc/update-motd.d/": "T1037.004",
    "/etc/ld.so.preload": "T1574.006",
    "/etc/sudoers": "T1548.003",
    "/etc/sudoers.d/": "T1548.003",
    "/etc/passwd": "T1136.001",
    "/etc/shadow": "T1136.001",
    "/etc/udev/rules.d/": "T1546.017",
    "/etc/pam.d/": "T1556.003",
}

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "rootfs", "devtmpfs"})
_FACTS: Final = ("path", "device", "inode", "size", "changed")
_MAX_REMEMBERED: Final = 8192
"""Files whose digests are remembered; twice what is looked at, for those that were exchanged."""


@dataclass(frozen=True, slots=True)
class _Known:
    """This is a file as it was.

    Args:
        file: its row.
        digest: of its beginning; empty where that was not all in memory.
    """

    file: CachedFile
    digest: str


@dataclass(slots=True)
class Persistence:
    """This compares such files with what they were.

    Args:
        interval_s: from one look to the next; files are searched for more seldom.
        more: further paths, each with a ``/`` at its end for all that is in a folder.
        files: finds them.
    """

    interval_s: float = 1.0
    more: Sequence[str] = ()
    files: FileWatch = field(default_factory=FileWatch)
    _known: dict[str, _Known] = field(default_factory=dict, init=False)
    _findings: dict[str, Finding] = field(default_factory=dict, init=False)
    _mark: int | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)
    _searches: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "persistence"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterator[Finding | Unseen]:  # noqa: ARG002 - the contract gives it
        """This looks once; between two searches it tells what the last one has found."""
        label = guest.processes().provenance
        if label.epoch != self._epoch:
            self._known.clear()
            self._findings.clear()
            self._mark, self._epoch = None, label.epoch
        files = self.files.files(guest, (*TECHNIQUES, *self.more), label)
        if self.files.searches != self._searches:
            self._searches = self.files.searches
            self._compare(guest, [file for file in files if not file.deleted])
        yield from self._findings.values()
        yield from self.files.unseen()

    def _compare(self, guest: GuestOS, files: Sequence[CachedFile]) -> None:
        """This looks at what is there now."""
        first = self._mark is None
        if first:
            self._mark = self.files.newest
        for file in files:
            key = _key(file)
            known = self._known.get(key)
            if known is None or _is_changed(known.file, file):
                self._look_at(guest, file, known, first=first)
        there = {_key(file) for file in files}
        for key in self._findings.keys() - there:
            known = self._known.get(key)
            if known is None or known.file.filesystem in _IN_MEMORY:
                self._findings.pop(key)  # elsewhere it may only have left memory

    def _look_at(
        self, guest: GuestOS, file: CachedFile, known: _Known | None, *, first: bool
    ) -> None:
        """This looks into one file, and remembers it as it was when it was seen first."""
        found = content_of(guest, file)
        if found is None:
            return
        data, whole = found
        now = _Known(file, hashlib.sha256(data).hexdigest() if whole else "")
        key = _key(file)
        made = known is None and not first and file.changed > (self._mark or 0)
        changed = known is not None and _differs(known, now)
        bad = bad_line(data)
        self._findings.pop(key, None)
        if bad is not None or made or changed:
            how = "was made" if made else "was changed" if changed else "is there"
            self._findings[key] = _finding(now, known, how, bad)
        better = known is None or bool(now.digest)
        if not changed and better and len(self._known) < _MAX_REMEMBERED:
            self._known[key] = now


def _key(file: CachedFile) -> str:
    return f"{file.device} {file.path}"


def _differs(was: _Known, now: _Known) -> bool:
    """This tells whether a file has another content: pages that left memory are no change."""
    if was.file.size != now.file.size:
        return True
    return bool(was.digest and now.digest) and was.digest != now.digest


def _is_changed(was: CachedFile, now: CachedFile) -> bool:
    """This tells whether a file must be looked into again."""
    return (was.inode, was.size, was.changed, was.cached) != (
        now.inode,
        now.size,
        now.changed,
        now.cached,
    )


def _finding(now: _Known, known: _Known | None, how: str, bad: bytes | None) -> Finding:
    file = now.file
    technique = next(
        (one for path, one in TECHNIQUES.items() if is_named(file.path, path)), "T1543"
    )
    facts: dict[str, Fact] = {"sha256": now.digest}
    if file.size > MAX_CONTENT:
        facts["looked_at"] = MAX_CONTENT
    if bad is not None:
        facts["text"] = short(bad.decode("utf-8", "backslashreplace"))
    before = (
        ()
        if known is None or how != "was changed"
        else (seen("page cache before", known.file, _FACTS, sha256=known.digest),)
    )
    words = f", and holds {facts['text']}" if bad is not None else ""
    digest = hashlib.sha256(_key(file).encode("utf-8", "backslashreplace")).hexdigest()
    return Finding(
        claim=f"{short(file.path)} {how}{words}",
        severity=Severity.HIGH if bad is not None else Severity.MEDIUM,
        technique=technique,
        key=f"file {digest[:32]} {now.digest[:32]}",
        evidence=(*before, seen("page cache", file, _FACTS, **facts)),
    )
