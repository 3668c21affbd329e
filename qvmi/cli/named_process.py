"""The process that is meant by a pid."""

from qvmi.errors import GuestError
from qvmi.semantics.guest_os import GuestOS, Process

__all__ = ["named_process"]


def named_process(guest: GuestOS, pid: int) -> Process:
    """This is the process of the initial pid namespace that has this pid.

    Raises:
        GuestError: there is none.
        WalkFailed: the list of processes cannot be walked at all.
    """
    process = next((one for one in guest.processes() if one.pid == pid), None)
    if process is None:
        raise GuestError(f"no process of this guest has the pid {pid}")
    return process
