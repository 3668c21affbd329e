"""Every example runs on real guests, as a user would run it."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Final

import pytest

import qvmi
from qvmi.cli.printing.escape import escaped
from tests.command_line import DEADLINE_S, environment
from tests.guests.lab import Guest, GuestConfig, MapsLine, NetSocket
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process
from tests.repository.tree import ROOT

EXAMPLES: Final = ROOT / "examples"
LONGEST: Final = 60  # lines; what takes more belongs into the library
PLAIN: Final = ("01_list_processes.py", "02_watch_modules.py")
OF_A_DUMP_TOO: Final = ("04_triage.py", "05_report.py")
RUN_BELOW: Final = {*PLAIN, "03_many_machines.py", *OF_A_DUMP_TOO}
NETWORK: Final = ("tcp", "tcp6", "udp", "udp6", "raw")
TAGS: Final = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "nav", "a"),
    *("table", "tr", "th", "td", "svg", "text", "path"),
}


def command(name: str, *arguments: str) -> list[str]:
    # The tree's package, as if it were installed.
    run = (
        "import runpy, sys; from pathlib import Path; sys.argv = sys.argv[1:];"
        " sys.path.insert(0, str(Path(sys.argv[0]).parent));"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-c", run, str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@contextmanager
def started(name: str, *arguments: str) -> Iterator[IO[str]]:
    """This runs an example for as long as the block lasts, and gives what it prints."""
    with subprocess.Popen(
        command(name, *arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def guest(guests: GuestPool) -> Guest:
    return guests.restore(GuestConfig(kernel="6.1"))


def test_each_example_is_run_here_and_short() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert {path.name for path in paths} == RUN_BELOW
    assert {path.name: len(path.read_text().splitlines()) <= LONGEST for path in paths} == {
        path.name: True for path in paths
    }


def test_lists_the_processes(guest: Guest) -> None:
    before = guest.settled_truth()
    done = run("01_list_processes.py", guest.qmp)
    assert (done.returncode, done.stderr) == (0, "")
    pids = {int(line.split()[0]) for line in done.stdout.splitlines()}
    lasting = before.unchanged_until(guest.truth()).values()
    assert {task.pid for task, _ in lasting if task.leads} - pids == set()
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_tells_of_a_module_that_comes_and_goes(guest: Guest) -> None:
    loaded = len(guest.truth().modules)
    with started("02_watch_modules.py", guest.qmp) as lines:
        assert lines.readline() == f"{loaded} modules are loaded\n"
        guest.ask("load ifb")
        (module,) = (module for module in guest.truth().modules if module.name == "ifb")
        assert lines.readline() == f"loaded 'ifb' at {module.address:#x}\n"
        guest.ask("unload ifb")
        assert lines.readline() == "unloaded 'ifb'\n"


def test_looks_at_many_machines_though_one_fails(guests: GuestPool, tmp_path: Path) -> None:
    first = guests.restore(GuestConfig(kernel="6.1"))
    second = guests.restore(GuestConfig(kernel="5.10"))
    missing = str(tmp_path / "none.sock")
    done = run("03_many_machines.py", first.qmp, missing, second.qmp)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    for line, guest in ((lines[0], first), (lines[2], second)):
        truth = guest.settled_truth()
        users = sum(not task.kernel_thread for task in truth.processes)
        assert line == f"{guest.qmp}: linux {truth.release!r}, {users} user processes"
    assert re.match(re.escape(f"{missing}: SocketUnreachable("), lines[1])


def in_both_forms(guest: Guest, name: str, folder: Path, *arguments: str) -> tuple[str, str]:
    """This is what an example prints of a guest that stands still, and of a dump of it."""
    guest.monitor.execute("stop")
    with qvmi.attach_sync(guest.qmp) as machine:
        machine.dump(folder / "guest.core")
    live = run(name, "--qmp", guest.qmp, *arguments)
    dead = run(name, "--dump", str(folder / "guest.core"), *arguments)
    assert [(done.returncode, done.stderr) for done in (live, dead)] == [(0, "")] * 2
    return live.stdout, dead.stdout


def code_of(guest: Guest) -> Iterator[tuple[str, int, int]]:
    """These are the findings that the guest's own maps have: what it is, pid and address."""
    for pid, text in guest.proc("maps").items():
        for line in map(MapsLine.of_line, text.splitlines()):
            if "x" in line.permissions and line.name.endswith(" (deleted)"):
                yield "deleted", pid, line.start
            elif "wx" in line.permissions:
                yield "writable", pid, line.start


def test_triage_names_what_the_guest_has_of_it_live_and_in_a_dump(
    guest: Guest, tmp_path: Path
) -> None:
    truth, code = guest.settled_truth(), set(code_of(guest))
    hidden = hide_process(guest, "files")
    live, dead = in_both_forms(guest, "04_triage.py", tmp_path)
    assert live == dead
    guest.monitor.execute("cont")
    assert set(run("04_triage.py", "--qmp", guest.qmp).stdout.splitlines()) >= set(
        live.splitlines()
    )
    lines = [line.split(None, 3) for line in live.splitlines()]
    assert {pid for kind, pid, *_ in lines if kind == "hidden"} == {str(hidden.pid)}
    network = {more for kind, _, _, more in lines if kind == "network"}
    for protocol in NETWORK:
        for one in NetSocket.of_lines(protocol, truth.lines.get(f"/proc/net/{protocol}", ())):
            assert any(f"{protocol} {one.local} {one.remote} {one.state}" in it for it in network)
    found = {
        (kind, int(pid), int(re.findall("0x[0-9a-f]+", more)[0], 16))
        for kind, pid, _, more in lines
        if kind in {"deleted", "writable"}
    }
    # A process that is hidden from the list is not asked for its mappings.
    assert found == {row for row in code if row[1] != hidden.pid}
    assert {kind for kind, *_ in found} == {"deleted", "writable"}


class Page(HTMLParser):
    """The page of a report: its tags with their attributes, and what stands in its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str | None] = set()
        self.places: set[str | None] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value for name, value in attrs if name == "href"}
        self.places |= {f"#{value}" for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        self.words += data.split("\n")


def check_harmless(text: str, page: Page) -> None:
    """This checks that nothing of a page leads out of it, or does anything."""
    assert page.tags == TAGS
    assert "src" not in page.attributes
    assert page.links == page.places
    assert {"#findings", "#timeline", "#command_lines"} < page.links
    assert not any(name.startswith("on") for name in page.attributes)
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_report_shows_every_word_of_the_guest_and_none_does_anything(
    guest: Guest, tmp_path: Path
) -> None:
    truth, path = guest.settled_truth(), tmp_path / "report.html"
    findings = {kind for kind, *_ in code_of(guest)}
    assert findings
    in_both_forms(guest, "05_report.py", tmp_path, str(path))
    dead = path.read_text(encoding="utf-8")
    assert run("05_report.py", "--qmp", guest.qmp, str(path)).returncode == 0
    live = path.read_text(encoding="utf-8")
    # Above the contents stands where it is from, and when it was taken.
    assert dead.partition("<nav>")[2] == live.partition("<nav>")[2]
    assert f"<h1>linux {truth.release} in {guest.qmp}</h1>" in live
    assert re.search(r"<p>captured at [0-9-]{10} [0-9:]{8} UTC, up \d:\d\d:\d\d</p>", live)
    assert re.search(r"<p>dump at [0-9-]{10} [0-9:]{8} UTC, up \d:\d\d:\d\d</p>", dead)
    page = Page(live)
    check_harmless(live, page)
    assert findings <= set(page.words)
    # Kernel workers come and go.
    lasting = [task.name for task in truth.processes if not task.kernel_thread]
    names = [escaped(name.decode("utf-8", "backslashreplace")) for name in lasting]
    assert Counter(names) - Counter(page.words) == Counter()
    assert "<b>&amp;<script" in page.words
    assert {module.name for module in truth.modules} <= set(page.words)
    guest.monitor.execute("cont")
    assert run("05_report.py", "--qmp", guest.qmp, str(path)).returncode == 0
    assert Counter(names) - Counter(Page(path.read_text(encoding="utf-8")).words) == Counter()


@pytest.mark.parametrize("name", OF_A_DUMP_TOO)
def test_what_is_no_dump_is_said_so(name: str, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.core"
    nothing.write_bytes(b"")
    done = run(
        name, "--dump", str(nothing), *([str(tmp_path / "x.html")] if "report" in name else [])
    )
    assert done.returncode == 1
    assert done.stderr.startswith("NotADump(")
    assert run(name).stderr.startswith("usage: ")
    assert list(tmp_path.iterdir()) == [nothing]


@pytest.mark.parametrize("name", PLAIN)
def test_without_a_socket_it_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    done = run(name, str(tmp_path / "none.sock"))
    assert done.returncode == 1
    assert done.stderr.startswith("SocketUnreachable(")
    assert run(name).stderr.startswith("usage: ")
