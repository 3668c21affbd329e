"""Each benchmark runs, and its sides give the same answer; how fast they are is not asked here."""

import subprocess
import sys

import pytest

from tests.repository.tree import ROOT

BENCHMARKS = [
    "cold_attach",
    "events",
    "files_and_maps",
    "gdbstub",
    "guest_size",
    "inspection",
    "isf",
    "live_listing",
    "pause",
    "process_list",
    "scan",
    "start_time",
    "volatility",
    "warm_attach",
]
# The first one fetches 300 MB of debug information, and boots the guests that are thawed later.
FIRST_S = 1200


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=FIRST_S,
        check=False,
    )


@pytest.mark.timeout(FIRST_S)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_both_sides_give_the_same_answer(name: str) -> None:
    ended = run(name, "--quick")
    assert ended.returncode == 0, ended.stderr
    assert "both sides gave the same answer" in ended.stdout
    assert ": reached" in ended.stdout or ": missed" in ended.stdout


def test_every_benchmark_of_both_sides_is_run() -> None:
    scripts = (ROOT / "benchmarks").glob("*.py")
    runnable = {script.stem for script in scripts if "__main__" in script.read_text()}
    assert runnable - {"bus", "qmp", "respond"} == set(BENCHMARKS)
