"""What is wrong with a guest's memory, its names and the software in it."""

from collections.abc import Sequence

from qvmi.addr import Pa, Va
from qvmi.errors.base import QvmiError

__all__ = [
    "CorruptTable",
    "GuestError",
    "LayoutNotFound",
    "MemoryFault",
    "NotAnswered",
    "PluginFailed",
    "SymbolNotFound",
    "SymbolsError",
    "TranslationFault",
    "UnknownGuest",
    "WalkFailed",
]


class MemoryFault(QvmiError):
    """These guest bytes cannot be read.

    Attributes:
        address: the first address that cannot be read.
        size: bytes asked for.
        kind: ``physical`` or ``virtual``.
    """

    def __init__(self, address: int, size: int, *, kind: str = "physical", why: str = "") -> None:
        detail = f": {why}" if why else ""
        super().__init__(f"cannot read {size} bytes at {kind} address {address:#x}{detail}")
        self.address = address
        self.size = size
        self.kind = kind


class TranslationFault(MemoryFault):
    """No page table maps this virtual address.

    Attributes:
        level: the paging structure whose entry stopped the walk, such as ``PDE``; empty for an
            address that is not canonical.
        entry: the entry's value, None where there is none.
        table: the entry's physical address, None where there is none.
    """

    def __init__(
        self,
        va: Va,
        *,
        level: str = "",
        entry: int | None = None,
        table: Pa | None = None,
        why: str,
    ) -> None:
        super().__init__(va, 1, kind="virtual", why=why)
        # What failed is the translation: how much was to be read there a walk does not know.
        self.args = (f"cannot translate virtual address {va:#x}: {why}",)
        self.level = level
        self.entry = entry
        self.table = table


class SymbolsError(QvmiError):
    """This is the base of what can go wrong with names and layouts."""


class SymbolNotFound(SymbolsError):
    """The kernel has no symbol of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no symbol {name!r} in this kernel")
        self.name = name


class LayoutNotFound(SymbolsError):
    """The kernel has no type, or the type no field, of this name."""

    def __init__(self, type_name: str, field: str | None = None) -> None:
        what = f"{type_name}.{field}" if field else type_name
        super().__init__(f"no {'field' if field else 'type'} {what!r} in this kernel's types")
        self.type_name = type_name
        self.field = field


class CorruptTable(SymbolsError):
    """This table contradicts itself.

    Attributes:
        table: which table, such as ``BTF`` or ``kallsyms_names``.
        problem: what is wrong, with the values.
    """

    def __init__(self, table: str, problem: str) -> None:
        super().__init__(f"{table}: {problem}")
        self.table = table
        self.problem = problem


class GuestError(QvmiError):
    """This is the base of what can be wrong with the software in the guest."""


class UnknownGuest(GuestError):
    """No operating system was recognised in this guest.

    Attributes:
        evidence: what was looked at and found, one line each.
    """

    def __init__(self, reason: str, evidence: Sequence[str] = ()) -> None:
        lines = "".join(f"\n  - {line}" for line in evidence)
        super().__init__(f"{reason}{lines}")
        self.reason = reason
        self.evidence = tuple(evidence)


class WalkFailed(GuestError):
    """This guest structure could not be walked, so there is no listing at all.

    Attributes:
        structure: its name, such as ``init_task.tasks``.
        problem: what stopped the walk.
    """

    def __init__(self, structure: str, problem: str) -> None:
        super().__init__(f"cannot walk {structure}: {problem}")
        self.structure = structure
        self.problem = problem


class NotAnswered(GuestError):
    """This question is not answered of the system that runs in this guest.

    Attributes:
        question: that was asked.
        system: that runs there.
        way_out: what answers it instead.
    """

    def __init__(self, question: str, system: str, way_out: str) -> None:
        super().__init__(f"{question} is not answered of {system}: {way_out}")
        self.question = question
        self.system = system
        self.way_out = way_out


class PluginFailed(GuestError):
    """This Volatility plugin failed, by itself or over what this guest holds.

    Attributes:
        plugin: its name.
        problem: what it failed with, in its own words.
    """

    def __init__(self, plugin: str, problem: str) -> None:
        super().__init__(f"{plugin} failed: {problem}")
        self.plugin = plugin
        self.problem = problem
