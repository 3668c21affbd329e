"""A scan of all RAM with the owners of up to 1,000 hits, beside YARA-X's own scan of the file that holds it.

``python benchmarks/scan.py [--quick]``. Both scan the same file with the same rules, in turns, while the
guest stands still. Ours starts a process for it, compiles the rules, and tells whose each hit is; the
peer has compiled them before. The peer's first scan makes the host fill the holes of the file, so
that qvmi, which leaves holes out, has to scan as much from then on.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import yara_x
from looks import KERNEL, make_lab, stopped
from race import Disagreement, Side, Size, agree, in_turns, run, tell_ratio

import qvmi
from qvmi import Machine
from qvmi.semantics.rows.scan import ScanHit
from tests.guests.lab import Guest, GuestConfig

FULL_MIB, QUICK_MIB = 3072, 512
LEAST: Final = 0.85
LOW_RAM: Final = 2 << 30
"""Of a q35 machine with more than 2.75 GiB so much lies below 4 GiB; the rest is above."""
HIGH: Final = 4 << 30
FILL: Final = "dd if=/dev/urandom of=/run/fill bs=1M count={count} 2>/dev/null; sync"
MARK: Final = (
    'BEGIN{s=sprintf("%s%4083s", "QV" "MARK-scanned", ""); for(i=0;i<9;i++) s=s s;'
    ' printf "%s", s >"/run/marked"; close("/run/marked"); system("touch /run/done; sleep 100000")}'
)
RULES: Final = r"""
rule marks { strings: $a = "QVMARK-scanned" condition: $a }
rule keys {
  strings:
    $pem = "-----BEGIN RSA PRIVATE KEY-----"
    $shadow = /root:\$[0-9a-z]{1,2}\$[.\/0-9A-Za-z]{8,86}:/
    $elf = { 7F 45 4C 46 02 01 01 [9] 02 00 3E 00 }
  condition:
    any of them
}
"""


def fill(guest: Guest, count: int) -> None:
    """This puts data and marks into the guest's memory."""
    guest.run(FILL.format(count=count))
    guest.run(f"(exec awk '{MARK}') </dev/null >/dev/null 2>&1 &")
    waited = guest.run(
        "i=0; while ! [ -e /run/done ] && [ $i -lt 600 ]; do usleep 50000; i=$((i+1)); done;"
        " ls /run/done"
    )
    if waited != b"/run/done\n":
        raise Disagreement(f"the guest has no marks: {waited!r}")


def place(hit: ScanHit) -> tuple[str, str, int, int]:
    """This is a hit as the peer tells it, by its offset in the file."""
    offset = hit.address - (HIGH - LOW_RAM if hit.address >= HIGH else 0)
    return hit.rule, hit.pattern, offset, hit.length


def peers(scanner: yara_x.Scanner, path: str) -> list[tuple[str, str, int, int]]:
    """This is what the peer finds."""
    return [
        (rule.identifier, pattern.identifier, match.offset, match.length)
        for rule in scanner.scan_file(path).matching_rules
        for pattern in rule.patterns
        for match in pattern.matches
    ]


def timed(look: Callable[[], object]) -> Side:
    """This takes the time of a look."""

    def side() -> float:
        began = time.perf_counter()
        look()
        return time.perf_counter() - began

    return side


async def found(machine: Machine) -> list[ScanHit]:
    """This is what qvmi finds."""
    return [hit async for hit in machine.scan(RULES)]


def main(size: Size) -> None:
    """This races on one thawed guest that stands still."""
    mib = size.of(full=FULL_MIB, quick=QUICK_MIB)
    scanner = yara_x.Scanner(yara_x.compile(RULES))
    with (
        make_lab().restore(GuestConfig(kernel=KERNEL, memory_mib=mib)) as guest,
        asyncio.Runner() as runner,
    ):
        fill(guest, mib // 4)
        path = str(guest.ram_paths[0])
        with stopped(guest), attached(runner, guest) as machine:
            hits = runner.run(found(machine))
            agree("hits", [place(hit) for hit in hits], peers(scanner, path))
            owned = sum(bool(hit.owners) for hit in hits)
            ours, theirs = in_turns(
                size.of(full=7, quick=1),
                timed(lambda: runner.run(found(machine))),
                timed(lambda: peers(scanner, path)),
            )
    ratio = theirs.median / ours.median
    tell_ratio(
        f"scan of {mib} MiB with the owners of {owned} hits",
        str(ours),
        ratio,
        beside=f"scan_file {theirs}",
        target=f"at least {LEAST}",
        reached=ratio >= LEAST,
    )


@contextmanager
def attached(runner: asyncio.Runner, guest: Guest) -> Iterator[Machine]:
    """This attaches on the runner's event loop for a block that runs in between."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(qvmi.attach(guest.qmp)))
    finally:
        runner.run(stack.aclose())


if __name__ == "__main__":
    run(main)
