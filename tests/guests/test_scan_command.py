"""The command ``scan``: what people and programs see of hits, and what its exit code says."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.command_line import qvmi, qvmi_document, qvmi_on_terminal
from tests.guests import marked
from tests.guests.lab import GuestConfig, Lab
from tests.guests.marked import Marked
from tests.guests.pool import GuestPool

TITLES: Final = "ADDRESS VIRTUAL LENGTH RULE PATTERN DATA OWNERS"
NOT_THERE: Final = "64 65 61 64 ff 00 62 65 65 66 fe 01 71 76 6d 69"


@pytest.fixture(scope="module")
def planted(lab: Lab) -> Iterator[Marked]:
    with ExitStack() as stack:
        yield marked.mark(GuestPool(lab, stack).restore(GuestConfig(kernel="6.1")))


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_a_pipe_gets_a_line_for_each_hit_and_nothing_on_stderr(planted: Marked) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", "--string", marked.FILE)
    assert (done.returncode, done.stderr) == (0, "")
    titles, *lines = done.stdout.splitlines()
    assert titles.split() == TITLES.split()
    (line,) = (line for line in lines if marked.PATH in line)
    offset = f"{marked.PATH}+{marked.FILE_OFFSET:#x}"
    assert line.split()[1:] == ["-", "11", "string", "$1", marked.FILE, "page", "cache", offset]


def test_names_that_a_guest_makes_up_move_no_column(planted: Marked) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", "--string", "/proc/sys/kernel/hotplug")
    assert done.returncode == 0
    assert all(line.isprintable() for line in done.stdout.removesuffix("\n").split("\n"))
    assert re.search(r"init\[1\] at 0x[0-9a-f]+", done.stdout)
    assert " more" in done.stdout


def test_a_document_has_hits_with_all_their_owners(planted: Marked) -> None:
    document = qvmi_document(
        "--qmp",
        planted.guest.qmp,
        "scan",
        "--string",
        marked.HEAP,
        "--pid",
        str(planted.heap_pid),
        *("--limit", "100000"),
    )
    assert list(document) == ["items", "gaps", "provenance"]
    hit = document["items"][0]
    assert list(hit) == ["rule", "pattern", "address", "virtual", "length", "data", "owners"]
    assert bytes.fromhex(hit["data"]) == marked.HEAP.encode()
    ((owner),) = hit["owners"]
    assert owner == {
        "kind": "process",
        "name": "awk",
        "pid": planted.heap_pid,
        "address": hit["virtual"],
        "offset": None,
    }


def test_hits_of_a_file_of_rules_end_with_0(planted: Marked, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yar"
    (tmp_path / "more.yar").write_text('rule more { strings: $m = "QVMARK-many" condition: $m }')
    rules.write_text('include "more.yar"\nrule once { strings: $o = "QVMARK-once" condition: $o }')
    command = ("scan", str(rules), "--page-cache", "--limit", "20000")
    document = qvmi_document("--qmp", planted.guest.qmp, *command)
    counts = [hit["rule"] for hit in document["items"]]
    assert (counts.count("more"), counts.count("once")) == (marked.HEAP_COUNT, 1)


def test_nothing_found_is_said_by_an_empty_list(planted: Marked) -> None:
    document = qvmi_document("--qmp", planted.guest.qmp, "scan", "--hex", NOT_THERE, "--kernel")
    assert (document["items"], document["gaps"]) == ([], [])


def test_more_hits_than_are_told_end_with_4_and_more_than_were_asked_for_do_not(
    planted: Marked,
) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", "--hex", "00", "--kernel", "--json")
    assert done.returncode == 4
    assert len(json.loads(done.stdout)["items"]) == 10_000
    assert "more hits than are told" in done.stderr
    command = ("scan", "--string", "QVMARK", "--limit", "3")
    assert len(qvmi_document("--qmp", planted.guest.qmp, *command)["items"]) == 3


def test_that_nothing_was_found_is_said_on_stderr(planted: Marked) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", "--hex", NOT_THERE, "--kernel")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "qvmi: 0 hits\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "scan for what"),
        (("--hex", "nothing"), "no pattern of bytes"),
        (("/nowhere/rules.yar",), "No such file"),
        (("--pid", "1", "--kernel", "--string", "x"), "not allowed with"),
    ],
    ids=["nothing", "no bytes", "no file", "two areas"],
)
def test_what_cannot_be_looked_for_ends_with_2(
    planted: Marked, arguments: tuple[str, ...], words: str
) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_rules_that_are_wrong_end_with_2_and_the_compilers_words(
    planted: Marked, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yar"
    rules.write_text("rule wrong { condition: $nothing }")
    done = qvmi("--qmp", planted.guest.qmp, "scan", str(rules))
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown pattern `$nothing`" in done.stderr
    assert f"{rules}:1:25" in done.stderr


@pytest.mark.parametrize("pid", ["2", "4194304"])
def test_a_process_without_memory_ends_with_4(planted: Marked, pid: str) -> None:
    done = qvmi("--qmp", planted.guest.qmp, "scan", "--string", "x", "--pid", pid)
    assert (done.returncode, done.stdout) == (4, "")
    assert "no memory of its own" in done.stderr or f"has the pid {pid}" in done.stderr


def test_a_terminal_shows_how_far_it_is_and_at_the_end_the_hits_alone(planted: Marked) -> None:
    with qvmi_on_terminal("--qmp", planted.guest.qmp, "scan", "--string", marked.FILE) as terminal:
        assert terminal.end() == 0
    assert b"scanning" in terminal.screen
    last = terminal.screen.decode().rsplit("\x1b[2K", 1)[-1]
    assert "scanning" not in last
    assert marked.PATH.encode() in terminal.screen


def test_ctrl_c_ends_it_with_130(planted: Marked, tmp_path: Path) -> None:
    rules = tmp_path / "slow.yar"
    rules.write_text(
        'rule slow { strings: $a = "none" condition: $a or'
        " for all i in (0..1000000000000) : (uint8(i % 4096) < 256) }"
    )
    with qvmi_on_terminal("--qmp", planted.guest.qmp, "scan", str(rules)) as terminal:
        terminal.wait_for(b"MiB")  # it has begun: the bar tells how much there is to scan
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert planted.guest.run("echo alive") == b"alive\n"
