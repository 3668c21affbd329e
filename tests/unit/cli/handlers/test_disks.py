"""``disk`` refuses what does not go together before it asks the machine."""

from typing import TYPE_CHECKING, cast

import pytest

from qvmi.cli.handlers.disks import disk
from qvmi.errors import UsageError
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine

MACHINE = cast("Machine", FakeMachine())  # nothing is asked of it where the options are refused


@pytest.mark.parametrize(
    ("action", "path", "volume", "to", "why"),
    [
        ("list", None, None, "file", "-o is for `disk cat` alone"),
        ("list", None, 3, None, "disk list lists all volumes of a disk: leave out --volume"),
        ("list", "/etc", None, None, "disk list takes no PATH"),
        ("compare", None, 1, None, "leave out --device and --volume"),
        ("compare", "etc", None, None, "'etc': name a PATH of the guest, which begins with /"),
        ("cat", None, None, None, "disk cat what"),
    ],
)
@asynchronous
async def test_what_does_not_go_together_is_refused_and_named(
    action: str, path: str | None, volume: int | None, to: str | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        await disk(MACHINE, Captured(), action=action, path=path, device=None, volume=volume, to=to)
