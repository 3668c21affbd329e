"""The journal knows after a kill at which step a run was, and what can be undone."""

import re
import time
from pathlib import Path

import msgspec
import pytest

from qvmi.errors import UsageError
from qvmi.manager.response import journal as journals
from qvmi.manager.response.journal import Journal, Undo
from qvmi.manager.response.records import Outcome
from tests.unit.manager.response.alerts import alert

UP = Undo(word="nic-up", names=("net0",))


FORGED = b'{"type":"step","run":"run-1","step":1,"undo":[{"word":"delete-snapshot"}]}\n'


def begun(path: Path) -> None:
    """This does two steps of a run and begins a third, and then is killed."""
    with Journal(path) as journal:
        run = journal.begin("run-1", "book", (alert(key="a"),))
        journal.begin_step(run, 1, (UP,))
        journal.end_step(run, 1, Outcome.DONE)
        journal.begin_step(run, 2)
        journal.end_step(run, 2, Outcome.REFUSED)
        journal.begin_step(run, 3, (UP,))


def test_a_run_that_was_cut_off_is_known_with_its_step_and_its_undo(tmp_path: Path) -> None:
    begun(tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        (run,) = journal.cut_off
        assert (run.name, run.playbook, run.next_step, run.begun) == ("run-1", "book", 3, 3)
        assert run.keys == (("one", "a"),)
        assert run.undo == [(1, UP), (3, UP)]
        journal.end(run, undone=True)
    with Journal(tmp_path / "journal") as journal:
        assert journal.cut_off == []
        assert journal.runs["run-1"].undone


def test_when_a_run_began_and_that_its_alert_was_cleared_is_kept(tmp_path: Path) -> None:
    begun(tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        (run,) = journal.still_led_to_by(("one", "a"))
        assert journal.still_led_to_by(("one", "b")) == []
        journal.clear(run, ("one", "a"))
        assert journal.still_led_to_by(("one", "a")) == []
    with Journal(tmp_path / "journal") as journal:
        assert journal.still_led_to_by(("one", "a")) == []
        assert 0.0 < journal.runs["run-1"].at <= time.time()


def test_a_journal_of_before_it_was_noted_when_a_run_began_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    begun(path)
    path.write_bytes(re.sub(rb',"at":[0-9.]+}\n', b"}\n", path.read_bytes()))
    with Journal(path) as journal:
        assert journal.runs["run-1"].at == 0.0


def test_half_a_line_of_a_crash_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    begun(path)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            (run,) = journal.cut_off
            assert (run.begun, run.next_step) == (2, 3)
            journal.end(run)
        with Journal(path) as journal:
            assert journal.cut_off == []


@pytest.mark.parametrize(
    "line", [b"no json\n", b"{}\n", b'{"type":"what"}\n', b"\xff\n", b"[" * 5000 + b"\n", FORGED]
)
def test_what_is_no_journal_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    begun(path)
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(UsageError, match="line 7 is none of a journal"):
        Journal(path)


def test_only_one_at_a_time_has_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal"), pytest.raises(UsageError, match="another qvmi uses it"):
        Journal(tmp_path / "journal")
    Journal(tmp_path / "journal").close()


def test_a_link_is_not_followed_and_others_cannot_read_it(tmp_path: Path) -> None:
    begun(tmp_path / "journal")
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0
    (tmp_path / "link").symlink_to(tmp_path / "journal")
    with pytest.raises(UsageError, match="cannot be opened"):
        Journal(tmp_path / "link")


def test_on_a_full_disk_nothing_begins() -> None:
    with (
        pytest.raises(UsageError, match=r"cannot be|no space"),
        Journal(Path("/dev/full")) as journal,
    ):
        journal.begin("run-1", "book", ())


def test_a_long_journal_is_written_anew_with_all_that_matters_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never grows beyond what the next one reads, nor keeps every run in memory."""
    path = tmp_path / "journal"
    begun(path)
    monkeypatch.setattr(journals, "COMPACT_FROM", 20_000)
    monkeypatch.setattr(journals, "MAX_KEPT", 10_000)
    sizes = []
    with Journal(path) as journal:
        for number in range(2, 60):
            run = journal.begin(f"run-{number}", "book", (alert(key="x" * 200),))
            journal.begin_step(run, 1, (UP,))
            journal.end_step(run, 1, Outcome.DONE)
            journal.end(run, undone=number % 2 == 0)
            journal.clear(run, ("one", "x" * 200))
            sizes.append(path.stat().st_size)
        with pytest.raises(UsageError, match="another qvmi uses it"):
            Journal(path)
        before = msgspec.json.encode(list(journal.runs.values()))
    assert max(sizes) < 23_000
    with Journal(path) as journal:
        assert msgspec.json.encode(list(journal.runs.values())) == before
        (cut_off,) = journal.cut_off
        assert (cut_off.name, cut_off.begun, cut_off.next_step) == ("run-1", 3, 3)
        assert cut_off.undo == [(1, UP), (3, UP)]
        assert list(journal.runs)[-1] == "run-59"
        assert 10 < len(journal.runs) < 40
    assert [one.name for one in tmp_path.iterdir()] == ["journal"]


def test_a_journal_that_cannot_be_written_anew_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    begun(path)
    (tmp_path / "journal.new").mkdir()
    monkeypatch.setattr(journals, "COMPACT_FROM", 1)
    with Journal(path) as journal:
        journal.begin("run-2", "book", (alert(),))  # for which there is room yet
        whole = path.read_bytes()
        monkeypatch.setattr(journals, "MAX_GROWN", 1)
        with pytest.raises(UsageError, match="cannot be written anew"):
            journal.begin("run-3", "book", (alert(),))
        assert list(journal.runs) == ["run-1", "run-2"]
    assert path.read_bytes() == whole
