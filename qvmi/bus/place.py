"""Where a broker runs, and where it listens beside its Unix socket."""

from dataclasses import dataclass
from typing import Final

__all__ = ["HERE", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """This is a place for a broker.

    Attributes:
        enter: the command that runs another one there; empty for where this program is.
        address: the one IPv4 address it listens on; None for none but its Unix socket.
        port: the TCP port there.
        as_root: whether it is root there, though this program may not be.
    """

    enter: tuple[str, ...] = ()
    address: str | None = None
    port: int = 0
    as_root: bool = False


HERE: Final = Place()
"""Where this program is, on a Unix socket alone."""
