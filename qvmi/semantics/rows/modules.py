"""Rows about kernel modules."""

import msgspec

from qvmi.addr import Va

__all__ = ["Module", "ModuleSighting"]


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


class ModuleSighting(msgspec.Struct, frozen=True, gc=False):
    """This is one structure in which a module was seen.

    Args:
        structure: ``modules``, ``mod_tree``, ``module_kset``, ``module_bug_list``, or ``memory`` where it
            was found by its form alone.
        name: ``module.name``; as the guest's kernel has it.
        state: ``live``, ``coming``, ``unformed`` or ``going``.
        struct_address: of its ``struct module``.
    """

    structure: str
    name: str
    state: str
    struct_address: Va
