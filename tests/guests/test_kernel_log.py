"""The kernel's log that is seen is the one that the guest's own /dev/kmsg gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import LogRecord
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest

FLOOD: Final = 6000
"""Lines that are more than any of these rings holds."""
UNLIMITED: Final = "echo on > /proc/sys/kernel/printk_devkmsg"

MOST_SAID_MEANWHILE: Final = 3
"""Records that the kernel may add of itself between two looks at its log."""
PUSHED_OUT: Final = 8
"""Short records that a long one may take the place of."""


def _seen(listing: Listing[LogRecord]) -> list[tuple[object, ...]]:
    assert not listing.gaps
    return [
        (
            *(row.sequence, round(row.time_s * 1e9) // 1000, row.level, row.facility, row.text),
            *(row.subsystem, row.device),
        )
        for row in listing
    ]


def _true(guest: Guest) -> list[tuple[object, ...]]:
    return [
        (
            *(one.sequence, one.microseconds, one.level, one.facility),
            *(shown_name(one.text.encode("latin-1")), one.subsystem, one.device),
        )
        for one in guest.log()
    ]


@asynchronous
async def test_equals_kmsg(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        seen = _seen(machine.guest.log())
    assert seen == _true(guest)
    assert any(row[-1] for row in seen)  # some are of devices
    proof_count(len(seen))


@asynchronous
async def test_what_could_disturb_an_output_is_its_very_bytes(guest: Guest, profiles: Path) -> None:
    guest.run(f"{UNLIMITED}; printf '<3>odd \\033[31m \\377 [/] \\\\x41\\n' > /dev/kmsg")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        last = machine.guest.log().items[-1]
    assert (last.text, last.level, last.facility) == ("odd \x1b[31m \\xff [/] \\x41", 3, 1)


@asynchronous
async def test_a_ring_that_has_gone_round_begins_with_the_oldest_that_is_left(
    guest: Guest, profiles: Path
) -> None:
    loop = f"i=0; while [ $i -lt {FLOOD} ]; do echo flood-$i > /dev/kmsg; i=$((i+1)); done"
    guest.run(f"{UNLIMITED}; {loop}")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        seen = _seen(machine.guest.log())
    true = _true(guest)
    # The kernel may have said something more by now, as of a clock on a loaded machine.
    behind = len(true) - 1 - true.index(seen[-1])
    assert behind <= MOST_SAID_MEANWHILE
    assert seen[-(len(true) - behind) :] == true[: len(true) - behind]
    assert len(seen) - (len(true) - behind) <= PUSHED_OUT * behind
    assert seen[0][0] != 0
    assert f"flood-{FLOOD - 1}" in {record[4] for record in seen}
