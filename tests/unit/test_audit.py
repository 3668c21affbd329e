"""The audit log: what it keeps, and that no change of it goes unnoticed."""

import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qvmi.audit import LOGGER, AuditLog, verify
from qvmi.errors import AuditBroken, AuditFailed, PolicyDenied
from qvmi.policy import READ_ONLY, Grant
from tests.command_line import qvmi, qvmi_document

WRITER = """
import logging, sys
from pathlib import Path
from qvmi.audit import LOGGER, AuditLog
with AuditLog(Path(sys.argv[1])):
    for number in range(int(sys.argv[2])):
        logging.getLogger(LOGGER).info("%s %d", sys.argv[3], number)
        print(number, flush=True)
"""


def written(path: Path, *texts: str) -> list[bytes]:
    """Writes records, and gives the lines of the file."""
    with AuditLog(path):
        for text in texts:
            logging.getLogger(LOGGER).info(text)
    return path.read_bytes().splitlines(keepends=True)


def test_a_record_tells_what_was_done_when_and_by_whom(tmp_path: Path) -> None:
    (line,) = written(tmp_path / "log", "write 4 bytes: old 00 new 90")
    record = json.loads(line)
    assert (record["text"], record["level"]) == ("write 4 bytes: old 00 new 90", "INFO")
    assert (record["uid"], record["pid"], record["sequence"]) == (os.getuid(), os.getpid(), 0)


def test_a_hash_is_that_of_the_record_without_it(tmp_path: Path) -> None:
    first, second = written(tmp_path / "log", "first", "second")
    own = json.loads(second).pop("hash")
    body = second[: second.index(b',"hash"')] + b"}"
    assert own == hashlib.sha256(body).hexdigest()
    assert json.loads(second)["previous"] == json.loads(first)["hash"]


def test_a_refusal_is_a_record(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log"), pytest.raises(PolicyDenied):
        READ_ONLY.require(Grant.WRITE, "write 8 bytes at 0x1000")
    record = json.loads((tmp_path / "log").read_bytes())
    assert record["level"] == "WARNING"
    assert "refused: write 8 bytes at 0x1000: not granted (needs grant 'write')" in record["text"]


def test_a_log_that_was_left_alone_is_intact_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "first", "second")
    before = verify(path)
    written(path, "third")
    after = verify(path, head=before.head)
    assert (before.records, after.records) == (2, 3)
    assert json.loads(path.read_bytes().splitlines()[2])["previous"] == before.head


def test_words_of_a_guest_stay_on_their_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = written(path, 'evil\n{"sequence":1}\r\x1b[2J\N{LINE SEPARATOR}\\xff', "next")
    assert len(lines) == 2
    assert verify(path).records == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(lambda lines: [lines[0], lines[1].lower(), lines[2]], 2, id="altered"),
        pytest.param(lambda lines: [lines[0], lines[2]], 2, id="left-out"),
        pytest.param(lambda lines: lines[1:], 1, id="first-left-out"),
        pytest.param(lambda lines: [lines[1], lines[0], lines[2]], 1, id="moved"),
        pytest.param(lambda lines: [lines[0], *lines], 2, id="doubled"),
        pytest.param(lambda lines: [*lines, b"\n"], 4, id="empty-line"),
        pytest.param(lambda lines: [*lines[:2], lines[2][:-1]], 3, id="end-of-line-cut-off"),
        pytest.param(lambda lines: [*lines[:2], lines[2][:40]], 3, id="cut-in-a-record"),
        pytest.param(lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]], 2, id="no-json"),
        pytest.param(lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[1:]], 2, id="deep"),
        pytest.param(lambda lines: [*lines[:2], lines[2].replace(b'"INFO"', b'"INF0"')], 3, id="a-letter"),
    ],
)  # fmt: skip
def test_a_change_is_told_with_the_line_it_is_in(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(change(written(path, "first", "second", "third"))))
    with pytest.raises(AuditBroken) as caught:
        verify(path)
    assert caught.value.line == line


def test_every_bit_counts(tmp_path: Path, proof_count: Callable[[int], None]) -> None:
    path = tmp_path / "log"
    whole = b"".join(written(path, "first", "second"))
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(AuditBroken):
            verify(path)
    proof_count(len(whole))


def test_what_was_cut_off_shows_beside_a_hash_that_was_noted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = written(path, "first", "second", "third")
    noted = verify(path).head
    path.write_bytes(b"".join(lines[:2]))
    assert verify(path).records == 2
    with pytest.raises(AuditBroken, match=noted):
        verify(path, head=noted)


def test_two_programs_share_a_log(tmp_path: Path, proof_count: Callable[[int], None]) -> None:
    path = tmp_path / "log"
    commands = [[sys.executable, "-c", WRITER, str(path), "40", name] for name in ("one", "two")]
    programs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [program.wait() for program in programs] == [0, 0]
    texts = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
    assert verify(path).records == 80
    assert sorted(texts) == sorted(f"{name} {n}" for name in ("one", "two") for n in range(40))
    proof_count(len(texts))


def test_a_program_that_is_killed_leaves_what_it_was_told_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    command = [sys.executable, "-c", WRITER, str(path), "100000", "it"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        told = [program.stdout.readline() for _ in range(20)]
        program.send_signal(signal.SIGKILL)
    assert len(told) == 20
    assert verify(path).records >= 20


def test_half_a_record_of_a_machine_that_crashed_makes_room_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = b"".join(written(path, "first"))
    path.write_bytes(whole + b'{"sequence":1,"time":17')
    with pytest.raises(AuditBroken):
        verify(path)
    written(path, "second")
    assert verify(path).records == 2


@pytest.mark.parametrize("letters", [1, 65_000, 65_536, 400_000, 1 << 20])
def test_records_of_any_length_follow_each_other_also_behind_half_a_one(
    tmp_path: Path, letters: int
) -> None:
    path = tmp_path / "log"
    long = "\x01" * letters  # six bytes each
    lines = written(path, "first", long, "second", long)
    path.write_bytes(b"".join(lines) + lines[1][:-1])
    written(path, "last")
    assert verify(path).records == 5


def test_a_file_that_is_no_log_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"my diary\n")
    with AuditLog(path), pytest.raises(AuditFailed, match="its last line is no record"):
        logging.getLogger(LOGGER).info("something")
    assert path.read_bytes() == b"my diary\n"


def test_a_disk_that_is_full_refuses_what_is_to_be_done_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = b"".join(written(path, "first"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
        with AuditLog(path), pytest.raises(AuditFailed):
            logging.getLogger(LOGGER).info("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", ["folder", "missing/log", "link"])
def test_what_cannot_be_a_log_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditFailed, match=place):
        AuditLog(tmp_path / place)
    if place != "link":
        with pytest.raises(AuditFailed, match=place):
            verify(tmp_path / place)


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    written(tmp_path / "log", "secret")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------------------------ the command line


def test_the_command_tells_an_intact_log_and_its_last_hash(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "first", "second")
    head = verify(path).head
    said = qvmi("audit", "verify", str(path))
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"2 records, as they were written; the last one is {head}\n"
    document = qvmi_document("audit", "verify", str(path), "--head", head)
    assert document == {"intact": True, "records": 2, "head": head}


def test_the_command_says_that_a_log_is_empty(tmp_path: Path) -> None:
    written(tmp_path / "log")
    said = qvmi("audit", "verify", str(tmp_path / "log"))
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "the log is empty: there is no record in it\n"


def test_the_command_ends_with_1_where_a_record_was_altered(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(written(path, "first", "second")).replace(b"second", b"SECOND"))
    said = qvmi("audit", "verify", str(path))
    assert (said.returncode, said.stdout) == (1, "")
    assert f"{path}, line 2:" in said.stderr
    told = qvmi("--json", "audit", "verify", str(path))
    assert told.returncode == 1
    assert (json.loads(told.stdout)["intact"], json.loads(told.stdout)["line"]) == (False, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere/log"], "/nowhere/log"),
        (["log", "--head", "12"], "'12' is no hash"),
        ([], "FILE"),
    ],
)
def test_the_command_names_what_cannot_be_checked(arguments: list[str], words: str) -> None:
    said = qvmi("audit", "verify", *arguments)
    assert said.returncode == 2
    assert words in said.stderr


@pytest.mark.parametrize("option", [True, False])
def test_a_log_that_cannot_be_opened_is_told_before_anything_is_done(
    tmp_path: Path, *, option: bool
) -> None:
    path = str(tmp_path / "missing" / "log")
    said = qvmi("--audit", path, "find") if option else qvmi("find", QVMI_AUDIT=path)
    assert (said.returncode, said.stdout) == (2, "")
    assert path in said.stderr
