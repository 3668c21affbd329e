"""A machine with a fake guest."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from qvmi.codepacks.resources import Resources
from qvmi.errors import NotDirect
from qvmi.machine.devices.disk_differences import DiskDifference
from qvmi.machine.devices.flow_watch import Flow
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Listing
from qvmi.testing.faults import Faults
from qvmi.testing.guest import FakeGuest
from qvmi.testing.memory import FakeMemory
from qvmi.testing.resources import fake_resources

__all__ = ["FakeMachine"]

Found = TypeVar("Found")


class FakeMachine:
    """This is a machine with a fake guest; watches and runners take it for a real one.

    Args:
        direct: whether its memory answers at once; otherwise there is only :meth:`query`.
        resources: what it shows beside memory; None for disks and a network card without anything to tell.
        lacking: what it has not, by grant: why.

    Attributes:
        resources: as above, for a test to change.
        address: what it was attached by.
        memory: its memory.
        epoch: raised by :meth:`reset`.
        calls: ``guest``, ``query``, ``capture``, ``refresh``, ``run_state``, ``disk_differences`` and
            ``flows``, in order, also those that failed.
    """

    def __init__(
        self,
        guest: FakeGuest | None = None,
        memory: FakeMemory | None = None,
        *,
        address: str = "/run/fake/qmp.sock",
        direct: bool = True,
        resources: Resources | None = None,
        lacking: Mapping[Grant, str] | None = None,
    ) -> None:
        self.resources = fake_resources() if resources is None else resources
        self._lacking = lacking or {}
        self.address = address
        self.memory = memory or FakeMemory({})
        self.epoch = 0
        self.calls: list[str] = []
        self._guest = guest or FakeGuest()
        self._direct = direct
        self._faults = Faults(
            ("guest", "query", "capture", "refresh", "run_state", "disk_differences", "flows")
        )

    @property
    def guest(self) -> FakeGuest:
        """This is the fake guest, or the error that was armed for it."""
        self._called("guest")
        if not self._direct:
            raise NotDirect("the memory of this fake is not direct: use `await machine.query(…)`")
        return self._guest

    async def query(self, look: Callable[[FakeGuest], Found], *, timeout_s: float = 60.0) -> Found:
        """This looks at the fake guest, or raises what was armed for it; it knows no time."""
        del timeout_s
        self._called("query")
        return look(self._guest)

    async def capture(self, walk: Callable[[FakeGuest], Found]) -> Found:
        """This does the walk over the fake guest, or raises what was armed for it."""
        self._called("capture")
        return walk(self._guest)

    async def refresh(self) -> None:
        """This does nothing, or raises what was armed for it."""
        self._called("refresh")

    async def run_state(self) -> str:
        """This says ``running``, or raises what was armed for it."""
        self._called("run_state")
        return "running"

    async def lacks(self, grant: Grant) -> str:
        """This is why it has nothing that the grant would show; empty where it has something."""
        return self._lacking.get(grant, "")

    async def netdevs(self) -> tuple[str, ...]:
        """This is the one card that it has, unless it lacks that."""
        return () if Grant.NETWORK_CAPTURE in self._lacking else ("fake",)

    async def disk_differences(self, under: str = "") -> Listing[DiskDifference]:
        """This lists what it was given, whatever is asked about, or raises what was armed for it."""
        del under
        self._called("disk_differences")
        return self.resources.disk_differences

    async def flows(
        self, seconds: float, *, netdev: str | None = None, least_looks: int = 1
    ) -> Listing[Flow]:
        """This lists what it was given, at once, or raises what was armed for it."""
        del seconds, netdev, least_looks
        self._called("flows")
        return self.resources.flows

    def fail_next(self, member: str, error: Exception) -> None:
        """This makes the next use of a member raise the error; several wait for their turn."""
        self._faults.arm(member, error)

    def reset(self, guest: FakeGuest) -> None:
        """This puts another guest into the machine, as a reset does."""
        self._guest = guest
        self.epoch += 1

    def _called(self, member: str) -> None:
        self.calls.append(member)
        self._faults.go_off(member)
