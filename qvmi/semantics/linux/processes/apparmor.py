"""Labels of AppArmor: the profiles that confine who has credentials.

References: Linux security/apparmor/include/label.h, policy.h, policy_ns.h, cred.h (``cred_label``),
lib.h (``aa_policy``), label.c (``aa_label_snxprint``, ``profile_snxprint``).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["AppArmor", "apparmor_of"]

_MAX_PROFILES: Final = 64
"""Profiles of one label; stacks of more than a few are not seen."""
_MAX_NAME: Final = 4096
"""``PATH_MAX``: a profile may be called by the path of its program."""
_LETTERS_A_STEP: Final = 8
"""Letters of names that cost as much as one structure elsewhere."""
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")


class AppArmor:
    """This reads the labels that AppArmor has given.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        sizes: address of ``apparmor_blob_sizes``, which says where in the blob of all security
            modules its own part is.

    Raises:
        SymbolsError: the profile lacks what labels need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, sizes: Va) -> None:
        self._space = space
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)
        self._place = sizes + field_offset(symbols, "lsm_blob_sizes", "lbs_cred")
        self._count = field_offset(symbols, "aa_label", "size")
        self._profiles = field_offset(symbols, "aa_label", "vec")
        self._name = field_offset(symbols, "aa_profile", "base")
        self._name += field_offset(symbols, "aa_policy", "hname")
        self._namespace = field_offset(symbols, "aa_profile", "ns")
        self._parent = field_offset(symbols, "aa_ns", "parent")
        self._namespace_name = field_offset(symbols, "aa_ns", "base")
        self._namespace_name += field_offset(symbols, "aa_policy", "hname")

    def label(self, security: int, effort: Effort) -> str:
        """This is a label as ``/proc/PID/attr/current`` shows it, without the profiles' modes.

        Args:
            security: ``cred.security``.
            effort: what it may cost.

        Returns:
            Nothing where AppArmor is not in use.

        Raises:
            Implausible: what lies there is no label.
            MemoryFault: it cannot be read.
            Spent: enough was looked at.
        """
        if not security:
            return ""
        label = self._read_pointer(security + self._read_number(self._place)[0])[0]
        if not label:
            return ""
        count = self._read_number(label + self._count)[0]
        if count > _MAX_PROFILES:
            raise Implausible(f"a label of {count} profiles")
        shown: list[str] = []
        last = 0
        for number in range(count):
            profile = self._read_pointer(label + self._profiles + number * _POINTER.size)[0]
            namespace = self._read_pointer(profile + self._namespace)[0]
            prefix = self._namespace_prefix(namespace, effort) if namespace != last else ""
            shown.append(prefix + self._text(profile + self._name, effort))
            last = namespace
        return "//&".join(shown)

    def _namespace_prefix(self, namespace: int, effort: Effort) -> str:
        """This is what stands before the name of a profile that is not in the first namespace."""
        if not self._read_pointer(namespace + self._parent)[0]:
            return ""
        _, _, below_first = self._text(namespace + self._namespace_name, effort).partition("//")
        return f":{below_first}:"

    def _text(self, at: int, effort: Effort) -> str:
        name = self._space.read_string(Va(self._read_pointer(at)[0]), _MAX_NAME)
        effort.spend(len(name) // _LETTERS_A_STEP)
        return text_of(name)


def apparmor_of(space: AddressSpace, symbols: Symbols) -> AppArmor | None:
    """This is the reader of labels, None where AppArmor is not built into the kernel."""
    sizes = symbols.find("apparmor_blob_sizes")
    if sizes is None:
        return None
    try:
        return AppArmor(space, symbols, sizes)
    except LayoutNotFound:
        return None
