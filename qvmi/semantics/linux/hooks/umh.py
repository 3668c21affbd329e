"""Programs that the kernel starts itself, as root: user-mode helpers, and the settings that name them.

References: Linux kernel/module/kmod.c (``modprobe_path``), kernel/reboot.c (``poweroff_cmd``),
lib/kobject_uevent.c (``uevent_helper``), fs/coredump.c (``core_pattern``: a program behind a bar).
"""

from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, KernelSetting
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.symbols.layout import Symbols

__all__ = ["UserModeHelpers"]

_CORE_PATTERN: Final = "core_pattern"
_SIZES: Final = {
    "modprobe_path": 256,
    "poweroff_cmd": 256,
    "uevent_helper": 256,
    _CORE_PATTERN: 128,
}
"""``KMOD_PATH_LEN``, ``POWEROFF_CMD_PATH_LEN``, ``UEVENT_HELPER_PATH_LEN``, ``CORENAME_MAX_SIZE``."""
_PIPE: Final = "|"


class UserModeHelpers:
    """This reads the settings of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        found = {name: symbols.find(name) for name in _SIZES}
        self._places = {name: at for name, at in found.items() if at is not None}

    def settings(self) -> ListWalk[KernelSetting]:
        """This lists the settings that this kernel has."""
        result: ListWalk[KernelSetting] = ListWalk()
        for name, at in self._places.items():
            try:
                data = self._space.read(Va(at), _SIZES[name])
            except MemoryFault as fault:
                result.gaps.append(Gap(name, at, str(fault)))
                continue
            value = data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
            result.rows[at] = KernelSetting(name, value, at, _program(name, value))
        if not self._places:
            result.gaps.append(Gap(_CORE_PATTERN, None, "the kernel does not tell where any is"))
        return result


def _program(name: str, value: str) -> str:
    """This is the program in a setting: what is behind it are arguments."""
    if name == _CORE_PATTERN:
        if not value.startswith(_PIPE):
            return ""
        value = value.removeprefix(_PIPE)
    return value.strip().partition(" ")[0]
