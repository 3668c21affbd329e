"""Members and methods of the kernel's types that Volatility's plugins take for what they are not, mended.

References: Volatility 3 2.28.2 framework/symbols/linux/__init__.py (``walk_internal_list``),
framework/symbols/linux/utilities/modules.py (``get_kset_modules``); Linux include/linux/notifier.h,
kernel/module/sysfs.c (``add_notes_attrs``).
"""

from typing import Final

from volatility3.framework import constants, interfaces, objects
from volatility3.framework.symbols.linux import extensions

__all__ = ["set_type_classes"]

_NOTES: Final = "module_notes_attrs"
"""Of a module. Up to 6.13 they have an object in sysfs of their own (its ``dir``), below the module's."""


def _target(pointer: objects.Pointer) -> interfaces.objects.ObjectInterface | None:
    """This is what a pointer leads to, None for NULL."""
    return pointer.dereference() if pointer else None


class _NotifierHead(objects.StructType):
    """This is the head of a chain of notifiers."""

    @property
    def head(self) -> interfaces.objects.ObjectInterface | None:
        """This is the first notifier: Volatility takes the place of the pointer for it."""
        return _target(self.member("head"))


class _Notifier(objects.StructType):
    """This is a notifier."""

    @property
    def next(self) -> interfaces.objects.ObjectInterface | None:
        """This is the next one, as in the head."""
        return _target(self.member("next"))

    def is_readable(self) -> bool:
        """This tells whether it can be read, as Volatility asks of what it takes for a pointer."""
        layer = self._context.layers[self.vol.layer_name]
        valid: bool = layer.is_valid(self.vol.offset, self.vol.size)
        return valid


class _ObjectWithoutNotes(extensions.kobject):
    """This is an object in sysfs of a kernel whose modules have none for their notes."""

    def reference_count(self) -> int:
        """This counts as if there were one: Volatility takes more than 2 for the mark of a module.

        It asks of the objects that stand for modules alone. One of the kernel's own parts has no module.
        """
        kind = f"{self.get_symbol_table_name()}{constants.BANG}module_kobject"
        offset = self._context.symbol_space.get_type(kind).relative_child_offset("kobj")
        around = self._context.object(kind, self.vol.layer_name, self.vol.offset - offset)
        count: int = super().reference_count()
        return count + 1 if around.member("mod") else count


def set_type_classes(table: interfaces.symbols.SymbolTableInterface) -> None:
    """This gives the types of a kernel, as far as it has them, what is meant."""
    table.optional_set_type_class("atomic_notifier_head", _NotifierHead)
    table.optional_set_type_class("notifier_block", _Notifier)
    if _NOTES in table.types and not table.get_type(_NOTES).has_member("dir"):
        table.optional_set_type_class("kobject", _ObjectWithoutNotes)
