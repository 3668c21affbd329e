"""Waiting in a guest for what its kernel makes by itself: a device that was plugged in or pulled."""

from typing import Final

from tests.guests.lab import Guest, LabError

__all__ = ["wait_for"]

_LOOKS: Final = 600
"""Of 0.1 s each in the guest."""


def wait_for(guest: Guest, path: str, *, gone: bool = False) -> None:
    """This waits in a guest until a path is there, or is not there any more.

    Raises:
        LabError: that does not come about.
    """
    wanted = f"! -e {path}" if gone else f"-e {path}"
    loop = f"i=0; until [ {wanted} ]; do sleep 0.1; i=$((i+1)); "
    looks = guest.run(f"{loop} [ $i -lt {_LOOKS} ] || break; done; echo $i")
    if int(looks) >= _LOOKS:
        raise LabError(f"never came about in the guest: {wanted}", fix="look at its console")
