"""drgn over a guest without debug information: its own types and symbols, read through our memory."""

from typing import TYPE_CHECKING

from qvmi.errors import UsageError

if TYPE_CHECKING:
    from qvmi.semantics.drgn_bridge.program import Program
    from qvmi.semantics.linux.guest import LinuxGuest

__all__ = ["program_of"]


def program_of(guest: "LinuxGuest") -> "Program":
    """This makes a drgn program on a guest; see :func:`qvmi.semantics.drgn_bridge.program.program_of`.

    Raises:
        UsageError: drgn is not installed.
    """
    try:
        import drgn  # noqa: F401, PLC0415 - an optional extra
    except ImportError as error:
        raise UsageError("drgn is not installed: pip install 'qvmi[drgn]'") from error
    from qvmi.semantics.drgn_bridge import program  # noqa: PLC0415 - needs the extra

    return program.program_of(guest)
