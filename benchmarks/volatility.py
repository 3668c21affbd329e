"""Volatility's process list, asked of a live guest by the bridge and of its RAM file by the stock command.

``python benchmarks/volatility.py [--quick]``. Both run the same plugin of the same Volatility on the same
bytes, with the symbols that qvmi took from the guest. The stock command is given its symbol file
beforehand and has its caches warm; it cannot read five levels of page tables, so the guest has four. A
context is what each question is asked in: layers, symbol table, module.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from looks import KERNEL, make_lab, stopped
from race import Side, Size, Times, agree, in_turns, process_environment, run, tell, tell_ratio

import qvmi
from qvmi.machine.machine import Machine
from qvmi.semantics.volatility_bridge.context import fresh_context
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.symbol_table import kernel_content
from qvmi.symbols.isf import write_isf
from qvmi.symbols.live import LiveSymbols
from tests.guests.lab import Guest, GuestConfig

PLUGIN = "linux.pslist.PsList"
LIMIT_S = 0.2
CONTEXT_LIMIT_S = 0.02
LEAST_SPEED_UP = 20.0
COMMAND_S = 2.0
CONTEXTS = 20
ENDS_S = 300
OFFSET = "OFFSET (V)"
ADDRESS_BITS = 48
COMPARED = ("PID", "TID", "PPID", "COMM", "UID", "GID")


def stock(ram: Path, folder: Path) -> list[dict[str, Any]]:
    """This is what the stock command says."""
    vol = Path(sys.executable).with_name("vol")
    options = ["-q", "-r", "json", "--offline", "--cache-path", str(folder / "cache")]
    options += ["-s", str(folder / "symbols"), "-f", str(ram)]
    done = subprocess.run(
        [sys.executable, vol, *options, PLUGIN],
        capture_output=True,
        env=process_environment(),
        timeout=ENDS_S,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def timed_stock(ram: Path, folder: Path) -> Side:
    """This runs the stock command from its start to its end."""

    def side() -> float:
        began = time.perf_counter()
        stock(ram, folder)
        return time.perf_counter() - began

    return side


def whole_command(guest: Guest) -> Side:
    """This runs `qvmi vol` from its start to its end."""
    program = "import sys; from qvmi.cli.main import main; sys.exit(main())"

    def side() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", program, "--qmp", guest.qmp, "vol", "-r", "json", PLUGIN],
            capture_output=True,
            env=process_environment(),
            timeout=ENDS_S,
            check=True,
        )
        return time.perf_counter() - began

    return side


def question(runner: asyncio.Runner, machine: Machine) -> Side:
    """This asks a machine that was asked before."""

    async def ask() -> float:
        began = time.perf_counter()
        await machine.volatility(PLUGIN)
        return time.perf_counter() - began

    return lambda: runner.run(ask())


def contexts(machine: Machine) -> Times:
    """This makes contexts, each from nothing but the symbols."""
    content = kernel_content(machine.guest.kernel)
    taken: list[float] = []
    for _ in range(CONTEXTS + 1):
        began = time.perf_counter()
        fresh_context(machine.guest, content, Interruption())
        taken.append(time.perf_counter() - began)
    return Times(taken[1:])  # the first one works out what the others share


def give_symbols(machine: Machine, folder: Path) -> None:
    """This writes the symbol file for the stock command."""
    kernel = machine.guest.kernel
    path = folder / "symbols" / "linux" / "guest.json"
    path.parent.mkdir(parents=True)
    (folder / "cache").mkdir()
    if isinstance(kernel.symbols, LiveSymbols):
        write_isf(kernel.symbols, path, slide=kernel.slide, banner=kernel.banner)


def compare(machine: Machine, runner: asyncio.Runner, ram: Path, folder: Path) -> None:
    """This checks that both sides see the same processes."""
    mask = (1 << ADDRESS_BITS) - 1
    table = runner.run(machine.volatility(PLUGIN))
    offsets = (row[OFFSET] for row in table)
    ours = [
        (offset & mask, *(row[name] for name in COMPARED))
        for offset, row in zip(offsets, table, strict=True)
        if isinstance(offset, int)
    ]
    theirs = [(row[OFFSET], *(row[name] for name in COMPARED)) for row in stock(ram, folder)]
    agree("process list by Volatility", ours, theirs)


def questions(guest: Guest, runner: asyncio.Runner, folder: Path, size: Size) -> None:
    """This races questions to a machine that stays attached to."""
    ram = guest.ram_paths[0]
    attachment = qvmi.attach(guest.qmp, cache=folder / "profiles")
    machine = runner.run(attachment.__aenter__())
    try:
        give_symbols(machine, folder)
        with stopped(guest):
            compare(machine, runner, ram, folder)
            rounds = size.of(full=5, quick=1)
            warm, vol = in_turns(rounds, question(runner, machine), timed_stock(ram, folder))
        tell(f"warm {PLUGIN}", warm, limit_s=LIMIT_S, peer="stock vol", theirs=vol)
        ratio = vol.median / warm.median
        tell_ratio(
            f"warm {PLUGIN} against the stock command",
            str(warm),
            ratio,
            beside=f"stock vol {vol}",
            target=f"at least {LEAST_SPEED_UP:g} times",
            reached=ratio >= LEAST_SPEED_UP,
        )
        tell("context of a question", contexts(machine), limit_s=CONTEXT_LIMIT_S)
    finally:
        runner.run(attachment.__aexit__(None, None, None))


def main(size: Size) -> None:
    """This asks about one thawed guest, which stands still while both sides look."""
    lab = make_lab()
    with (
        lab.restore(GuestConfig(kernel=KERNEL, cpu_flags="la57=off")) as guest,
        asyncio.Runner() as runner,
        tempfile.TemporaryDirectory(prefix="qvmi-") as name,
    ):
        folder = Path(name)
        questions(guest, runner, folder, size)
        command, vol = in_turns(
            size.of(full=3, quick=1),
            whole_command(guest),
            timed_stock(guest.ram_paths[0], folder),
        )
        tell(f"qvmi vol {PLUGIN}", command, limit_s=COMMAND_S, peer="stock vol", theirs=vol)


if __name__ == "__main__":
    run(main)
