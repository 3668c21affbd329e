"""A machine with a fake guest."""

from collections.abc import Callable
from typing import TypeVar

from qvmi.errors import NotDirect
from qvmi.testing.faults import Faults
from qvmi.testing.guest import FakeGuest
from qvmi.testing.memory import FakeMemory

__all__ = ["FakeMachine"]

Found = TypeVar("Found")


class FakeMachine:
    """This is a machine with a fake guest; watches and runners take it for a real one.

    Args:
        direct: whether its memory answers at once; otherwise there is only :meth:`query`.

    Attributes:
        address: what it was attached by.
        memory: its memory.
        epoch: raised by :meth:`reset`.
        calls: ``guest``, ``query``, ``capture``, ``refresh`` and ``run_state``, in order, also those
            that failed.
    """

    def __init__(
        self,
        guest: FakeGuest | None = None,
        memory: FakeMemory | None = None,
        *,
        address: str = "/run/fake/qmp.sock",
        direct: bool = True,
    ) -> None:
        self.address = address
        self.memory = memory or FakeMemory({})
        self.epoch = 0
        self.calls: list[str] = []
        self._guest = guest or FakeGuest()
        self._direct = direct
        self._faults = Faults(("guest", "query", "capture", "refresh", "run_state"))

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
