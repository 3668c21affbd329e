"""Rows about settings of the kernel that name programs which it starts itself."""

import msgspec

from qvmi.addr import Va

__all__ = ["KernelSetting"]


class KernelSetting(msgspec.Struct, frozen=True, gc=False):
    """This is one setting.

    Args:
        name: of the kernel's variable, such as ``modprobe_path``.
        value: as it is, with backslashes for what is no UTF-8.
        address: of the variable.
        runs: the program that the kernel would start, as root; empty where it starts none.
    """

    name: str
    value: str
    address: Va
    runs: str
