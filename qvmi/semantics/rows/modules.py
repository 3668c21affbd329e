"""Rows about kernel modules."""

import msgspec

from qvmi.addr import Va

__all__ = ["Module"]


class Module(msgspec.Struct, frozen=True, gc=False):
    """This is one loaded kernel module.

    Args:
        name: ``module.name``.
        address: where its text is loaded, as ``/proc/modules`` shows.
        size: bytes of all its parts, as ``/proc/modules`` shows.
        state: ``live``, ``coming`` or ``going``.
        struct_address: of its ``struct module``.
    """

    name: str
    address: Va
    size: int
    state: str
    struct_address: Va
