"""The string section of BTF: names by their offsets, and offsets by names.

References: Linux Documentation/bpf/btf.rst, section 2.1; split BTF: Linux kernel/bpf/btf.c
(``btf_name_by_offset``, ``btf_name_offset_valid``): offsets go on behind the base's.
"""

from typing import Final, Self

from qvmi.errors import CorruptTable

__all__ = ["MAX_NAME", "BtfStrings"]

MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``, to which the kernel holds the names of types, NUL included."""


class BtfStrings:
    """This holds the names of one BTF.

    Args:
        data: the section.
        base: that of the kernel when this is a module's; None for the kernel's own.
    """

    __slots__ = ("_base", "_data", "_first")

    def __init__(self, data: bytes, base: Self | None) -> None:
        self._data = data
        self._base = base
        self._first = 0 if base is None else base.size

    @property
    def size(self) -> int:
        """This is the number of offsets, those of the base included."""
        return self._first + len(self._data)

    def at(self, offset: int) -> str:
        """This is the name at an offset.

        Raises:
            CorruptTable: there is none, or it is too long for one.
        """
        if self._base is not None and offset < self._first:
            return self._base.at(offset)
        start = offset - self._first
        end = self._data.find(0, start, start + MAX_NAME)
        if not 0 <= start <= end:
            raise CorruptTable("BTF strings", f"no name at {offset}")
        return self._data[start:end].decode("utf-8", "backslashreplace")

    def bytes_at(self, offset: int) -> bytes:
        """These are the bytes of one of this section's own names, with the NULs around it.

        Raises:
            CorruptTable: there is none, or it is too long for one.
        """
        start = offset - self._first
        end = self._data.find(0, start, start + MAX_NAME)
        if not 0 < start <= end:
            raise CorruptTable("BTF strings", f"no name at {offset}")
        return self._data[start - 1 : end + 1]

    def offset_of(self, name: str) -> int | None:
        """This is where a name stands, None if nowhere; a module leaves out what its base has."""
        if self._base is not None and (known := self._base.offset_of(name)) is not None:
            return known
        wanted = name.encode("utf-8", "backslashreplace") + b"\0"
        if self._data.startswith(wanted):  # only the kernel's own begins with the empty name
            return self._first
        at = self._data.find(b"\0" + wanted)
        return None if at < 0 else at + 1 + self._first

    def begins_at(self, offset: int) -> bool:
        """This tells whether a name begins at an offset, rather than goes on or does not exist."""
        if self._base is not None and offset < self._first:
            return self._base.begins_at(offset)
        at = offset - self._first
        return at == 0 or (0 < at < len(self._data) and not self._data[at - 1])
