"""However far away a guest's memory is, every command sees the same in it, and the guest runs on.

The oracle of what is seen is the guest's own /proc, here for a list and elsewhere for the rest; that each
way sees the same is told by the same command with access to QEMU's process, or at least to its files.
"""

import filecmp
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.command_line import qvmi_document
from tests.guests.agreement import shown_name
from tests.guests.elsewhere import Elsewhere
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.proofs import proof_size

SAME: Final = (
    *((name,) for name in ("ps", "tree", "threads", "modules", "regs")),
    ("ps", "--exact"),
    ("read", "linux_banner", "100"),
    ("read", "--physical", "0x100000", "64K"),
    ("read", "--user", "1", "0x400000", "5000"),
    ("translate", "linux_banner"),
    ("translate", "0x400000", "--pid", "1"),
    ("symbol", "init_task"),
    ("type", "task_struct"),
    *((name,) for name in ("mounts", "files", "sockets", "maps", "log")),
    ("cmdline", "1"),
    *((name,) for name in ("creds", "namespaces", "cgroups")),
    ("bpf",),
    ("percpu", "kstat"),
    ("cached",),
    ("scan", "--string", "TERM=linux", "--pid", "1"),
    ("stack", "2"),  # of a task that runs while the guest stands there is none: kthreadd sleeps
)
DIRECT: Final = ("shared RAM file", "QEMU's shared mapping", "QEMU's process memory")


@dataclass(frozen=True, slots=True)
class Way:
    """This is a way to the memory, and where it is the best one there is.

    Args:
        used: what it is called.
        tcp: whether QMP is reached over TCP.
        shares_files: whether QEMU and qvmi see the same folders.
        names_stub: whether the user names the gdbstub.
    """

    used: str
    tcp: bool = False
    shares_files: bool = False
    names_stub: bool = False

    @property
    def refused(self) -> tuple[str, ...]:
        """These are the ways that are told of as not usable, the better ones first."""
        ways = {"pmemsave": (), "gdbstub": ("pmemsave",), "monitor": ("pmemsave", "gdbstub")}
        return DIRECT + ways[self.used]


WAYS: Final = {
    "a Unix socket and a folder": Way("pmemsave", shares_files=True),
    "TCP": Way("monitor", tcp=True),
    "TCP and a gdbstub": Way("gdbstub", tcp=True, names_stub=True),
}


EVERY: Final = proof_size(ci=2, full=1)
CASES: Final = [
    (name, command)
    for number, name in enumerate(WAYS)
    for command in (SAME if number == 0 else SAME[number % EVERY :: EVERY])
]
"""All commands by one way, and by the slower two each of them once; at full size all by all."""


def _named(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)


@dataclass(frozen=True, slots=True)
class Far:
    """This is a guest, and qvmi where it is reached that way alone."""

    guest: Guest
    way: Way
    elsewhere: Elsewhere
    gdb: str

    @property
    def options(self) -> tuple[str, ...]:
        """These name the machine."""
        return "--qmp", self.guest.qmp, *(("--gdb", self.gdb) if self.way.names_stub else ())


@pytest.fixture(scope="module", params=WAYS)
def far(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Far]:
    way = WAYS[request.param]
    with ExitStack() as stack:
        config = GuestConfig("6.1", memory_mib=256, ram="private", tcp=way.tcp)
        guest = GuestPool(lab, stack).restore(config)
        with socket.create_server(("127.0.0.1", 0)) as server:
            gdb = f"127.0.0.1:{server.getsockname()[1]}"
        guest.monitor.human(f"gdbserver tcp:{gdb}")
        folder = tmp_path_factory.mktemp("elsewhere")
        yield Far(guest, way, Elsewhere(folder, shares_files=way.shares_files), gdb)


@pytest.fixture
def near(far: Far, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """This is the command with access to QEMU's process, or what stands for it over TCP."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: qvmi_document("--qmp", far.guest.qmp, *arguments)


@pytest.fixture
def standing(far: Far) -> Iterator[Guest]:
    """This is the guest, which its owner has stopped: what is seen of it cannot change."""
    far.guest.monitor.execute("stop")
    yield far.guest
    far.guest.monitor.execute("cont")


def seen(document: Any) -> Any:  # noqa: ANN401 - JSON
    """This is what a document says of the guest, without how it was looked at."""
    return {name: value for name, value in document.items() if name != "provenance"}


@pytest.mark.usefixtures("standing")
@pytest.mark.parametrize(("far", "command"), CASES, ids=_named, indirect=["far"])
def test_every_command_sees_the_same(
    far: Far, near: Callable[..., Any], command: tuple[str, ...], proof_count: Callable[[int], None]
) -> None:
    document = far.elsewhere.document(*far.options, *command)
    assert seen(document) == seen(near(*command))
    assert document.get("provenance", {"pause_s": 0.0})["pause_s"] == 0.0
    assert not far.guest.monitor.running()
    proof_count(1)


def test_a_symbol_file_is_the_same(far: Far, near: Callable[..., Any], tmp_path: Path) -> None:
    files = tmp_path / "far.json", tmp_path / "near.json"
    far.elsewhere.document(*far.options, "isf", "-o", str(files[0]))
    near("isf", "-o", str(files[1]))
    assert filecmp.cmp(*files, shallow=False)
    assert far.guest.monitor.running()


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("standing")
def test_a_dump_is_the_same(far: Far, near: Callable[..., Any], tmp_path: Path) -> None:
    files = tmp_path / "far.core", tmp_path / "near.core"
    far.elsewhere.document(*far.options, "dump", str(files[0]))
    near("dump", str(files[1]))
    assert filecmp.cmp(*files, shallow=False)
    assert not far.guest.monitor.running()


def test_info_says_what_is_used_and_what_would_help_the_better_ways(far: Far) -> None:
    document = far.elsewhere.document(*far.options, "info")
    assert document["guest"]["release"].encode() in far.guest.run("uname -r")
    *refused, used = document["machine"]["memory"]
    assert (used["source"], used["used"]) == (far.way.used, True)
    assert tuple(one["source"] for one in refused) == far.way.refused
    helps = {one["source"]: one["reason"] for one in refused if not one["used"]}
    assert "memory-backend-memfd" in helps["shared RAM file"]
    assert "connect to a Unix socket on QEMU's own host" in helps["QEMU's process memory"]
    assert "run qvmi as QEMU's user" in helps.get("pmemsave", "run qvmi as QEMU's user")
    assert "--gdb" in helps.get("gdbstub", "--gdb")


def test_a_running_guest_is_listed_and_runs_on(far: Far) -> None:
    done = far.elsewhere.run(*far.options, "ps")
    assert done.returncode == 0
    tasks = far.guest.truth().processes
    plain = {shown_name(task.name) for task in tasks if task.name.isalnum()}
    assert len(plain) > 3
    listed = {line.split()[-1] for line in done.stdout.splitlines()}
    assert plain <= listed
    assert ("the guest stood still" in done.stderr) == (far.way.used == "gdbstub")
    assert far.guest.monitor.running()
    assert far.guest.run("echo alive") == b"alive\n"


def test_a_look_of_a_codepack_sees_everything(far: Far) -> None:
    rounds = ("--rounds", "1")
    done = far.elsewhere.run(*far.options, "pack", "run", "hidden-processes", *rounds, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gaps"] == []
    assert far.guest.monitor.running()


@pytest.mark.parametrize("far", ["TCP and a gdbstub"], indirect=True)
def test_a_stub_that_is_busy_is_told_and_another_way_is_taken(far: Far) -> None:
    host, _, port = far.gdb.rpartition(":")
    with socket.create_connection((host, int(port))) as debugger:
        assert debugger.recv(1)  # it is being served
        done = far.elsewhere.run(*far.options, "symbol", "init_task")
    far.guest.monitor.execute("cont")
    assert done.returncode == 0
    assert "not read by the gdbstub" in done.stderr
    assert "a gdbstub serves one debugger at a time" in done.stderr


@pytest.mark.usefixtures("standing")
def test_a_process_is_dumped_and_a_file_recovered_the_same(
    far: Far, near: Callable[..., Any], tmp_path: Path
) -> None:
    for arguments in (("dump", "--pid", "1"), ("recover", "/init", "-o")):
        files = tmp_path / "far", tmp_path / "near"
        far.elsewhere.document(*far.options, *arguments, str(files[0]))
        near(*arguments, str(files[1]))
        assert filecmp.cmp(*files, shallow=False), arguments
        assert files[0].stat().st_size > 1 << 19
