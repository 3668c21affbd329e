"""Volatility's plugins on aarch64 guests, for which Volatility has no layer: the guest's own word.

The oracles are those of x86-64: the guest's /proc over its serial line, and its own ``sha256sum``.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from volatility3.cli.text_renderer import CLIRenderer
from volatility3.framework import renderers

import qvmi
from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
from qvmi.semantics.volatility_bridge.table import Rendering
from tests.asynchronous import asynchronous
from tests.command_line import qvmi as run_qvmi
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool
from tests.guests.volatility_observation import AARCH64


class Codes(CLIRenderer):  # type: ignore[misc] # Volatility has no types
    """This writes which machine code a plugin found."""

    name = "Codes"
    structured_output = True

    def get_render_options(self) -> list[object]:
        return []

    def render(self, grid: renderers.TreeGrid) -> None:
        def take(node: object, _: object) -> None:
            for value in node.values:  # type: ignore[attr-defined] # of Volatility's
                if isinstance(value, renderers.Disassembly):
                    sys.stdout.write(f"{value.architecture}\n")

        grid.visit(None, take, None)


@pytest.fixture(scope="module", params=AARCH64, ids=str)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(AARCH64[request.param])


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@asynchronous
async def test_rows_can_be_joined_with_our_own(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, machine.paused():
        table = await machine.volatility("linux.pslist.PsList")
        ours = {
            process.pid: process.address
            for process in machine.guest.processes()
            if process.state != "Z"  # Volatility leaves out what has no namespaces any more
        }
    assert {row["PID"]: row["OFFSET (V)"] for row in table} == ours
    assert not table.gaps


@asynchronous
async def test_a_file_of_the_page_cache_is_recovered_to_the_byte(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        table = await machine.volatility("linux.pagecache.InodePages", find="/init", dump=True)
    (file,) = table.files
    digest = guest.run("sha256sum /init").decode().split()[0]
    assert hashlib.sha256(file.data).hexdigest() == digest
    assert not table.gaps


def test_machine_code_is_shown_as_what_it_is(guest: Guest, profiles: Path) -> None:
    plugin, rendering = "linux.malware.malfind.Malfind", Rendering("codes", escape=repr)
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        table = VolatilityBridge().rendered(machine.guest, plugin, {}, rendering)
    assert table.items
    assert set(table.text.split()) == {"arm64"}


def test_the_command_prints_one_document_of_one_moment(guest: Guest) -> None:
    words = ("vol", "--exact", "--json", "linux.psaux", "--pid", "1")
    shown = run_qvmi("--qmp", guest.qmp, *words)
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    (item,) = document["items"]
    (told,) = (task for task in guest.truth().processes if task.pid == 1)
    assert item["values"]["ARGS"].split() == told.command_line.decode().split("\0")[:-1]
    assert document["provenance"]["taken"] == "captured"
