"""A guest that connects all the time: what stays is in every look, and nothing is made up."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.semantics.guest_os import Listing, Socket
from tests.guests.exotic_guests import exotic_guest
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab

CLIENT: Final = (
    "i=0; while [ $i -lt 100000 ]; do wget -q -O /dev/null http://127.0.0.1:8080/marker.txt;"
    " i=$((i+1)); done"
)
LOOKS: Final = 60
MOST_WITH_GAPS: Final = LOOKS // 10
FEWEST_CONNECTIONS: Final = 5
MOST_LOOKS: Final = 3000
"""A loaded host may let the guest connect only now and then."""


@pytest.fixture(scope="module", params=KERNELS)
def connecting(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield exotic_guest(lab, stack, GuestConfig(request.param))


def _is_of_the_storm(row: Socket) -> bool:
    return row.protocol in {"tcp", "tcp6"} and "8080" in {
        end.rpartition(":")[2] for end in (row.local, row.remote)
    }


def test_what_stays_is_in_every_look_and_nothing_is_made_up(
    connecting: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    with qvmi.attach_sync(connecting.qmp, cache=profiles) as machine:
        staying = set(machine.guest.sockets())
        connecting.run(f"({CLIENT}) > /dev/null 2>&1 & echo $! > /tmp/client")
        try:
            listings = list(_looks(machine))
        finally:
            connecting.run("kill $(cat /tmp/client)")
    gaps = [listing.gaps for listing in listings if listing.gaps]
    assert len(gaps) <= MOST_WITH_GAPS, gaps
    for listing in listings:
        if not listing.gaps:
            assert staying <= set(listing)
        others = [row for row in set(listing) - staying if not _is_of_the_storm(row)]
        assert not [row for row in others if row.pid is None], others
    proof_count(len(_connections(listings)))


def _looks(machine: qvmi.SyncMachine) -> Iterator[Listing[Socket]]:
    """This looks until it has looked often enough, and at connections enough."""
    seen: set[str] = set()
    for count in range(1, MOST_LOOKS):
        listing = machine.guest.sockets()
        seen |= _connections([listing])
        yield listing
        if count >= LOOKS and len(seen) >= FEWEST_CONNECTIONS:
            return
    raise AssertionError(f"the guest connected {len(seen)} times in {MOST_LOOKS} looks")


def _connections(listings: list[Listing[Socket]]) -> set[str]:
    """These are the ends of connections to the httpd that were seen."""
    rows = (row for listing in listings for row in listing if _is_of_the_storm(row))
    return {row.local for row in rows if row.remote.endswith(":8080")}
