"""Volatility's plugins see the guest as it is, when they look, and do nothing to it.

The truth is the guest's own word, over its serial line.
"""

import asyncio
import hashlib
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import qvmi
from qvmi.errors import PluginFailed, UsageError
from qvmi.view import Taken
from tests.asynchronous import asynchronous, until
from tests.command_line import qvmi as run_qvmi
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.stock_volatility import save_isf
from tests.guests.tampering import guest_ram
from tests.guests.volatility_survey import (
    SOMETIMES,
    columns_of_document,
    linux_plugins,
    old_name_of,
    remark_of,
    survey,
)
from tests.repository.tree import ROOT

PSLIST = "linux.pslist.PsList"
SURVEY_S = 300
"""All plugins on one guest take some 45 s on an idle machine."""

OWN_PLUGINS = {
    "clock.py": '''
from volatility3.framework import interfaces, renderers
from volatility3.framework.configuration import requirements


class Jiffies(interfaces.plugins.PluginInterface):
    """Reads the kernel's clock."""

    _required_framework_version = (2, 0, 0)
    _version = (1, 0, 0)

    @classmethod
    def get_requirements(cls):
        return [
            requirements.ModuleRequirement(name="kernel", description="Linux kernel"),
            requirements.BooleanRequirement(name="for_ever", description="", optional=True),
            requirements.BooleanRequirement(name="broken", description="", optional=True),
            requirements.BooleanRequirement(name="at_once", description="", optional=True),
        ]

    def _rows(self):
        kernel = self.context.modules[self.config["kernel"]]
        clock = kernel.object_from_symbol("jiffies_64")
        task = kernel.object_from_symbol("init_task")
        if self.config.get("at_once"):
            raise KeyError("at once")
        yield 0, (int(clock), "first")
        while self.config.get("for_ever"):
            try:
                task.comm[0]
            except Exception:
                pass
        if self.config.get("broken"):
            raise KeyError("of its own")

    def run(self):
        return renderers.TreeGrid([("Jiffies", int), ("Which", str)], self._rows())
''',
}


def run_python(script: str, *arguments: str) -> str:
    """This is what a script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SURVEY_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is a folder of plugins of a user's own."""
    path = tmp_path_factory.mktemp("plugins")
    for name, text in OWN_PLUGINS.items():
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def one(lab: Lab) -> Iterator[Guest]:
    """This is a running guest with five levels of page tables, the same for all tests here."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.12"))


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


# --------------------------------------------------------------------------------------- every plugin


@pytest.mark.timeout(SURVEY_S)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_linux_plugin_does_what_the_document_says(
    guests: GuestPool, kernel: str, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    outcomes = survey(guests.restore(GuestConfig(kernel=kernel)), profiles)
    column = list(KERNELS).index(kernel)
    written = {name: cells[column] for name, cells in columns_of_document().items()}
    assert {name: written[name] for name in outcomes} == outcomes
    assert SOMETIMES not in outcomes.values() or outcomes["linux.sockscan.Sockscan"] == SOMETIMES
    proof_count(len(outcomes))


@asynchronous
async def test_all_kernel_symbols_are_listed_where_volatility_knows_their_form(
    guests: GuestPool, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        table = await machine.volatility("linux.kallsyms", core=True)
    truth = guest.kallsyms()
    assert len(table) == truth.count
    seen = {row["SymbolName"]: row["Addr"] for row in table}
    assert {name: seen[name] for name in truth.addresses} == truth.addresses
    newer = guests.restore(GuestConfig(kernel="7.x"))
    async with qvmi.attach(newer.qmp, cache=profiles) as machine:
        with pytest.raises(PluginFailed, match="unsupported operand"):
            await machine.volatility("linux.kallsyms", core=True)
    proof_count(len(table))


def test_the_document_has_every_plugin_and_no_other() -> None:
    written = columns_of_document()
    assert tuple(written) == linux_plugins()
    assert {name: cells[-1] for name, cells in written.items()} == {
        name: remark_of(name) for name in written
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
@asynchronous
async def test_an_old_name_of_a_plugin_answers_as_the_new_one(one: Guest, profiles: Path) -> None:
    old = "linux.tty_check.tty_check"
    new = old_name_of(old)
    assert new == "linux.malware.tty_check.Tty_Check"
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        by_old, by_new = await machine.volatility(old), await machine.volatility(new)
    assert by_old.items == by_new.items


# ------------------------------------------------------------------------------------ now, not before


@asynchronous
async def test_each_question_reads_anew(
    one: Guest, profiles: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("clock")  # a program's own plugin is found once it is imported
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        first = (await machine.volatility("clock.Jiffies")).items[0]["Jiffies"]
        assert isinstance(first, int)
        one.run("true")
        one.run("sleep 0.1")
        second = (await machine.volatility("clock.Jiffies")).items[0]["Jiffies"]
        assert isinstance(second, int)
        assert second > first
        async with machine.paused():
            still = [await machine.volatility("clock.Jiffies") for _ in range(2)]
        assert still[0].items == still[1].items
        assert {table.provenance.taken for table in still} == {Taken.PAUSED}
        assert still[1].provenance.pause_s > still[0].provenance.pause_s > 0


@asynchronous
async def test_a_capture_is_of_one_moment_and_the_guest_runs_on(one: Guest, profiles: Path) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        ours = await machine.capture(lambda guest: guest.processes())
        table = await machine.capture(machine.volatility_walk(PSLIST))
        live = await machine.volatility(PSLIST)
    assert table.provenance.taken is Taken.CAPTURED
    assert table.provenance.pause_s > 0
    assert live.provenance.taken is Taken.LIVE
    lasting = {process.pid for process in ours if process.pid < 3}
    assert lasting <= {row["PID"] for row in table}
    assert one.monitor.running()


@asynchronous
async def test_rows_can_be_joined_with_our_own(one: Guest, profiles: Path) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine, machine.paused():
        table = await machine.volatility(PSLIST)
        ours = {
            process.pid: process.address
            for process in machine.guest.processes()
            if process.state != "Z"  # Volatility leaves out what has no namespaces any more
        }
    assert {row["PID"]: row["OFFSET (V)"] for row in table} == ours
    assert table.columns[:2] == ("OFFSET (V)", "PID")
    assert not table.gaps


def test_a_script_without_an_event_loop_asks_the_same(one: Guest, profiles: Path) -> None:
    with qvmi.attach_sync(one.qmp, cache=profiles) as machine:
        table = machine.volatility(PSLIST, pid=[1, 2])
    assert [row["COMM"] for row in table] == ["init", "kthreadd"]


# ---------------------------------------------------------------------------------------- it ends


@asynchronous
async def test_a_deadline_ends_a_plugin_that_would_not(
    one: Guest, profiles: Path, folder: Path
) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        machine.volatility_queries.bridge.import_folders([folder])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await machine.volatility("clock.Jiffies", for_ever=True)
        # It has told that it is over; a moment later it is gone.
        await until(lambda: not any(t.name.startswith("volatility") for t in threading.enumerate()))
        assert len(await machine.volatility("clock.Jiffies")) == 1
    assert one.monitor.running()


@asynchronous
async def test_what_a_plugin_fails_at_is_a_gap_or_an_error(
    one: Guest, profiles: Path, folder: Path
) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        machine.volatility_queries.bridge.import_folders([folder])
        table = await machine.volatility("clock.Jiffies", broken=True)
        assert [row["Which"] for row in table] == ["first"]
        assert [gap.reason for gap in table.gaps] == ["KeyError: 'of its own'"]
        with pytest.raises(PluginFailed, match=r"clock\.Jiffies failed: KeyError: 'at once'"):
            await machine.volatility("clock.Jiffies", at_once=True)


@pytest.mark.parametrize(
    ("plugin", "options", "says"),
    [
        ("linux.nosuch", {}, "no plugin 'linux.nosuch'"),
        ("windows.pslist.PsList", {}, "not for Linux"),
        ("linux.check_", {}, "may be one of several"),
        (PSLIST, {"pids": [1]}, "no option 'pids'; it has: .*pid"),
        (PSLIST, {"pid": 1}, "pid is a list of int"),
        (PSLIST, {"threads": "yes"}, "threads is of type bool"),
        ("linux.module_extract", {}, "needs the option base"),
    ],
)
@asynchronous
async def test_a_question_that_makes_no_sense_is_refused(
    one: Guest, profiles: Path, plugin: str, options: dict[str, object], says: str
) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        with pytest.raises(UsageError, match=says):
            await machine.volatility(plugin, **options)


# ----------------------------------------------------------------------------------- it does no more

AUDITED = """
import asyncio, sys
from pathlib import Path
import qvmi
qmp, cache = sys.argv[1], Path(sys.argv[2])
seen = []
def hook(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect"):
        seen.append((event, str(arguments)))
    writes = {mode for mode in "wax+"}
    if event == "open" and isinstance(arguments[1], str) and writes & set(arguments[1]):
        seen.append((event, str(arguments[0])))
async def main():
    async with qvmi.attach(qmp, cache=cache) as machine:
        await machine.volatility("linux.pslist.PsList")
        sys.addaudithook(hook)
        for plugin, options in (
            ("linux.pslist.PsList", {"dump": True, "pid": [1]}),
            ("linux.psscan.PsScan", {}),
            ("linux.elfs.Elfs", {"dump": True, "pid": [1]}),
        ):
            table = await machine.volatility(plugin, **options)
            assert len(table), plugin
        assert len(table.files) > 0
        assert any(file.data.startswith(b"\\x7fELF") for file in table.files)
        wanted, seen[:] = list(seen), []
        print(wanted)
asyncio.run(main())
"""


def test_a_question_writes_no_file_starts_nothing_and_connects_to_nothing(
    one: Guest, tmp_path: Path
) -> None:
    said = run_python(AUDITED, one.qmp, str(tmp_path))
    assert said.strip() == "[]"


def test_nothing_but_a_question_imports_volatility(one: Guest, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import qvmi
with qvmi.attach_sync(sys.argv[1], cache=Path(sys.argv[2])) as machine:
    machine.guest.processes()
print([name for name in sys.modules if name.partition(".")[0] == "volatility3"])
"""
    assert run_python(script, one.qmp, str(tmp_path)).strip() == "[]"


# ----------------------------------------------------------------------------------- other sources


@asynchronous
async def test_with_an_isf_file_of_the_users_it_answers_the_same(
    one: Guest, profiles: Path, tmp_path: Path
) -> None:
    path = tmp_path / "guest.json.xz"
    await save_isf(one, path, profiles)
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        by_own_tables = await machine.volatility("linux.lsmod.Lsmod")
    async with qvmi.attach(one.qmp, isf=path) as machine:
        by_file = await machine.volatility("linux.lsmod.Lsmod")
    assert by_file.items == by_own_tables.items
    assert by_file.items


@asynchronous
async def test_a_guest_that_lies_gets_an_error_of_ours_and_no_other(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        await machine.volatility(PSLIST)
        space = machine.kernel_space
        tasks = machine.symbols.find_field("task_struct", ["tasks"])
        assert tasks is not None
        init = next(one for one in machine.guest.processes() if one.pid == 1)
        place = space.translate(qvmi.Va(init.address + tasks.offset))
        guest.monitor.execute("stop")
        with guest_ram(guest) as ram:
            for lie in (
                b"\0" * 8,
                b"\xff" * 8,
                (init.address + tasks.offset).to_bytes(8, "little"),
            ):
                with ram.altered(place, lie):
                    try:
                        table = await asyncio.wait_for(machine.volatility(PSLIST), 30)
                    except qvmi.QvmiError:
                        continue
                    assert len(table) < len(machine.guest.process_ids())
        guest.monitor.execute("cont")


# ------------------------------------------------------------------------------------- command line


def test_the_command_shows_hostile_names_harmlessly(one: Guest) -> None:
    for renderer in ("quick", "pretty", "csv", "mermaid"):
        shown = run_qvmi("--qmp", one.qmp, "vol", "-r", renderer, "linux.pslist")
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()
        assert all(
            character.isprintable() or character == "\t" for line in lines for character in line
        )
    assert len(lines) > 90


def test_the_command_runs_a_users_plugin(one: Guest, folder: Path) -> None:
    shown = run_qvmi("--qmp", one.qmp, "vol", "-p", str(folder), "-r", "json", "clock.Jiffies")
    assert shown.returncode == 0, shown.stderr
    (row,) = json.loads(shown.stdout)
    assert row["Jiffies"] > 1 << 31  # it begins five minutes before its 32 bits are full
    broken = run_qvmi("--qmp", one.qmp, "vol", "-p", str(folder), "clock.Jiffies", "--broken")
    assert broken.returncode == 4
    assert "of its own" in broken.stderr


def test_the_command_writes_a_plugins_files_under_names_that_are_free(
    one: Guest, tmp_path: Path
) -> None:
    for _ in range(2):
        words = ("-o", str(tmp_path), "linux.pagecache.InodePages", "--find", "/init", "--dump")
        written = run_qvmi("--qmp", one.qmp, "vol", *words)
        assert written.returncode == 0, written.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert files[1].stem == f"{files[0].stem}-1" or files[0].stem == f"{files[1].stem}-1"
    digest = one.run("sha256sum /init").decode().split()[0]
    assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == {digest}


def test_the_command_prints_one_document(one: Guest) -> None:
    shown = run_qvmi("--qmp", one.qmp, "vol", "--exact", "--json", PSLIST, "--pid", "1")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    (item,) = document["items"]
    assert (item["depth"], item["values"]["PID"], item["values"]["COMM"]) == (0, 1, "init")
    assert document["plugin"] == PSLIST
    assert document["columns"] == list(item["values"])
    assert document["provenance"]["taken"] == "captured"
