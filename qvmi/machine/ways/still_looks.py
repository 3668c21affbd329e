"""The guest as it stands still: what a machine shows while some pause goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import View

__all__ = ["StillLooks"]


@dataclass(frozen=True, slots=True, eq=False)
class _StillLook:
    """This is the guest in one pause."""

    view: View
    guest: LinuxGuest | None


class StillLooks:
    """These are the looks of the pauses that go on; blocks of several tasks may end in any order."""

    def __init__(self) -> None:
        self._looks: list[_StillLook] = []

    @property
    def view(self) -> View | None:
        """This is the machine as it stands still; None while no block of a pause goes on."""
        return self._looks[-1].view if self._looks else None

    @property
    def guest(self) -> LinuxGuest | None:
        """This is the system as it stands still; None while it runs, or where none is known."""
        return self._looks[-1].guest if self._looks else None

    @contextmanager
    def at(self, view: View, guest: LinuxGuest | None) -> Iterator[View]:
        """This lets a pause be looked at for as long as the block lasts.

        Args:
            view: of the pause.
            guest: the system that runs, seen live; None where none is known.
        """
        look = _StillLook(view, None if guest is None else guest.over(view))
        self._looks.append(look)
        try:
            yield view
        finally:
            self._looks.remove(look)
