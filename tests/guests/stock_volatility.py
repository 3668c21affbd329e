"""Stock Volatility 3, and the ISF files that qvmi gives it."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import qvmi
from qvmi.symbols.isf import write_isf
from qvmi.symbols.live import LiveSymbols
from tests.guests.lab import Guest

__all__ = ["VOLATILITY_S", "save_isf", "volatility"]

VOLATILITY_S = 240
"""It takes 5 to 9 s for a plugin on two idle cores."""


async def save_isf(guest: Guest, path: Path, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        kernel = machine.guest.kernel
        assert isinstance(kernel.symbols, LiveSymbols)
        write_isf(kernel.symbols, path, slide=kernel.slide, banner=kernel.banner)


def volatility(ram: Path, symbols: Path, caches: Path, *plugins: str) -> list[list[dict[str, Any]]]:
    """This is what the command `vol` says of a RAM file: rows by plugin, which look side by side."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_rows, ram, symbols, caches), plugins))


def _rows(ram: Path, symbols: Path, caches: Path, plugin: str) -> list[dict[str, Any]]:
    cache = caches / plugin  # each has its own: two that fill one get into each other's way
    cache.mkdir(parents=True)
    options = ["-q", "-r", "json", "--offline", "--cache-path", str(cache), "-s", str(symbols)]
    done = subprocess.run(
        [sys.executable, Path(sys.executable).with_name("vol"), *options, "-f", str(ram), plugin],
        capture_output=True,
        text=True,
        timeout=VOLATILITY_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows
