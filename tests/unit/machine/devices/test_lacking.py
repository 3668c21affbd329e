"""Why a machine has nothing to show by a grant."""

import pytest

from qvmi.machine.devices.disks import Disk
from qvmi.machine.devices.lacking import lacking
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Listing
from qvmi.view import Provenance, Taken
from tests.asynchronous import asynchronous


def disk(name: str, refused: str = "") -> Disk:
    return Disk(name, "", "", name, 1, read_only=False, removable=False, images=(), refused=refused)


async def told(grant: Grant, disks: tuple[Disk, ...] = (), netdevs: tuple[str, ...] = ()) -> str:
    async def listed() -> Listing[Disk]:
        return Listing(disks, (), Provenance(Taken.LIVE, 0.0))

    async def cards() -> tuple[str, ...]:
        return netdevs

    return await lacking(grant, listed, cards)


@pytest.mark.parametrize(
    ("disks", "words"),
    [
        ((), "this machine has no disk"),
        ((disk("cd0", "it has no medium"),), "no disk that is read (cd0: it has no medium)"),
        ((disk("cd0", "it has no medium"), disk("vda")), ""),
    ],
)
@asynchronous
async def test_disks_that_are_not_read_are_none_and_the_reason_is_told(
    disks: tuple[Disk, ...], words: str
) -> None:
    said = await told(Grant.DISK, disks)
    assert said.endswith(words)
    assert bool(said) is bool(words)


@asynchronous
async def test_without_a_card_there_is_nothing_to_watch() -> None:
    words = "this machine has no network card that could be captured at"
    assert await told(Grant.NETWORK_CAPTURE) == words
    assert await told(Grant.NETWORK_CAPTURE, netdevs=("net0",)) == ""
    assert await told(Grant.READ_MEMORY) == ""
