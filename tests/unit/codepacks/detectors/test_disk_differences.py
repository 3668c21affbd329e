"""Files that memory shows otherwise than the disk."""

import msgspec
import pytest

from qvmi.codepacks.detectors.disk_differences import DiskDifferences
from qvmi.codepacks.look import MAX_FINDING_BYTES
from qvmi.errors import UsageError
from qvmi.semantics.guest_os import Gap
from qvmi.testing import FakeGuest, FakeMemory, fake_disk_difference, fake_resources, looks

SU = fake_disk_difference("/bin/su", offset=8192, cached="12" * 32, stored="34" * 32)


def test_a_file_that_is_otherwise_on_the_disk_is_found_with_both_views() -> None:
    shown = fake_resources(disk_differences=[SU])
    (found,) = looks(DiskDifferences(0.001), FakeGuest(), resources=shown).confirmed
    memory, disk = found.finding.evidence
    assert (found.finding.severity, found.finding.technique) == ("high", "T1565.001")
    assert (memory.view, memory.address, memory.facts["sha256"]) == (
        "page cache",
        SU.address,
        "12" * 32,
    )
    assert (disk.view, disk.facts["disk"], disk.facts["offset"]) == ("disk", "virtio0", 8192)
    assert (memory.facts["path"], disk.facts["sha256"]) == ("/bin/su", "34" * 32)


def test_what_is_the_same_in_both_is_none() -> None:
    inspection = looks(DiskDifferences(0.001), FakeGuest())
    assert not inspection.found_anything
    assert inspection.saw_all


def test_what_could_not_be_compared_is_no_clean_bill() -> None:
    shown = fake_resources(gaps=[Gap("disk virtio0", None, "it contradicts itself")])
    assert not looks(DiskDifferences(0.001), FakeGuest(), resources=shown).saw_all


def test_pages_of_one_file_are_one_finding_and_two_files_are_two() -> None:
    rows = [fake_disk_difference("/a", offset=4096 * page) for page in range(50)]
    pack = DiskDifferences()
    shown = fake_resources(disk_differences=[*rows, SU])
    first, second = pack.inspect(FakeGuest(), FakeMemory({}), shown)
    assert "50 pages" in first.claim
    assert first.evidence[0].facts["pages"] == 50
    assert first.key != second.key


def test_the_key_is_the_same_though_the_path_and_the_pages_are_others() -> None:
    other = msgspec.structs.replace(SU, path="/another/name", offset=0, cached="56" * 32)
    one, two = (
        next(iter(DiskDifferences().inspect(FakeGuest(), FakeMemory({}), shown)))
        for shown in (fake_resources(disk_differences=[row]) for row in (SU, other))
    )
    assert one.key == two.key


def test_more_files_than_anybody_reads_are_told_of_as_one() -> None:
    rows = [fake_disk_difference("/x", inode=number) for number in range(5000)]
    shown = fake_resources(disk_differences=rows)
    findings = list(DiskDifferences().inspect(FakeGuest(), FakeMemory({}), shown))
    assert len(findings) == 101
    assert "4900 further files" in findings[-1].claim


def test_words_without_end_make_a_finding_that_fits() -> None:
    rows = [
        fake_disk_difference("/\\x00" * 4000, disk="d" * 5000, offset=page, inode=7)
        for page in range(40)
    ]
    shown = fake_resources(disk_differences=rows)
    (finding,) = DiskDifferences().inspect(FakeGuest(), FakeMemory({}), shown)
    assert len(msgspec.json.encode(finding)) < MAX_FINDING_BYTES


def test_without_a_comparison_it_says_so() -> None:
    with pytest.raises(UsageError, match="was not shown"):
        list(DiskDifferences().inspect(FakeGuest(), FakeMemory({})))
