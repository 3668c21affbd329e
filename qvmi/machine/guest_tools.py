"""What lets other tools look at a guest by its memory alone: Volatility, drgn and YARA."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from qvmi.semantics.drgn_bridge import program_of
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import select_windows
from qvmi.view import View

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qvmi.machine.scanning.scan import Scan, ScanArea, ScanProgress
    from qvmi.machine.scanning.scan_rules import ScanRules
    from qvmi.machine.scanning.scan_target import ScanTarget
    from qvmi.machine.volatility import VolatilityQueries
    from qvmi.semantics.drgn_bridge.program import Program
    from qvmi.semantics.volatility_bridge.table import VolatilityTable
    from qvmi.semantics.windows.guest import WindowsGuest

__all__ = ["GuestTools"]


class GuestTools(ABC):
    """This is the part of a machine, here or seen from another process, that needs its memory alone."""

    @property
    @abstractmethod
    def _recognised(self) -> LinuxGuest:
        """This is the guest as it is to be seen now, however its memory is read."""

    @property
    @abstractmethod
    def view(self) -> View:
        """This is a live look at the machine, whatever runs there."""

    def windows(self, isf: "Path | None" = None) -> "WindowsGuest":
        """This is the Windows that runs in the machine, as Volatility's plugins see it.

        Args:
            isf: a Volatility 3 symbol file of its kernel. Without one there are only the facts, which
                tell the PDB and the GUID that the file must be of.

        Raises:
            UnknownGuest: no vCPU runs a Windows kernel.
        """
        return select_windows(self.view, isf)

    def drgn(self) -> "Program":
        """This is a drgn program on the guest, with its own types and symbols, read as it is then.

        Raises:
            UsageError: drgn is not installed.
            SymbolsError, GuestError: the kernel lacks what drgn needs.
            UnknownGuest, StaleView: as :attr:`guest`.
            NotDirect: its memory has to be asked for, and this is the event loop; as does each read.
        """
        return program_of(self._recognised)

    async def volatility(self, plugin: str, /, **options: object) -> "VolatilityTable":
        """This asks a plugin of Volatility 3's, or of the user's own, in a thread.

        The guest is seen as it runs, or within :meth:`paused` at that moment.
        For one moment of a guest that runs give :meth:`volatility_walk` to :meth:`capture`.

        Args:
            plugin: its name, such as ``linux.pslist.PsList``, or a part of it that no other has.
            options: by the names that the plugin itself gives them.

        Raises:
            UsageError: Volatility is not installed, or there is no such plugin or option.
            PluginFailed: it failed before its first row; what fails behind that is a gap.
            UnknownGuest, StaleView, SymbolsError: as :attr:`guest`, and its tables.
        """
        return await self.volatility_queries.ask(plugin, options)

    def volatility_walk(
        self, plugin: str, /, **options: object
    ) -> "Callable[[LinuxGuest], VolatilityTable]":
        """This is a walk for :meth:`capture`, which asks a plugin as :meth:`volatility` does."""
        return self.volatility_queries.walk(plugin, options)

    @cached_property
    def volatility_queries(self) -> "VolatilityQueries":
        """These are the questions to Volatility, for whoever wants more of an answer than its rows."""
        from qvmi.machine.volatility import (  # noqa: PLC0415 - import time, for an optional part
            VolatilityQueries,
        )

        return VolatilityQueries(lambda: self._recognised)

    def scan(
        self: "ScanTarget",
        rules: "ScanRules | str | Path",
        *,
        area: "ScanArea | None" = None,
        pid: int | None = None,
        hits_per_rule: int | None = None,
        on_progress: "Callable[[ScanProgress], None] | None" = None,
    ) -> "Scan":
        """This is a scan of the guest's memory by YARA rules: ``async for hit in machine.scan(…)``.

        The guest runs meanwhile; within :meth:`paused` it stands still. Each hit tells whose the memory
        is. What could not be scanned is in the scan's ``gaps`` at the end.

        Args:
            rules: as text, or a file of them, or what `qvmi.machine.scanning.scan_rules` makes of patterns.
            area: which memory; all RAM unless told otherwise.
            pid: the process whose memory is scanned, in the order in which it sees it.
            hits_per_rule: so many hits of a rule are told; that there were more is a gap.
            on_progress: is told how far it is.

        Raises, when it is iterated:
            UsageError: the rules are wrong, or YARA-X is not installed.
            GuestError: there is no such process.
            UnknownGuest, StaleView: as :attr:`guest`, where more than all RAM is asked for.
            ScanFailed: the process that scans has ended.
        """
        from qvmi.machine.scanning.scan import Scan  # noqa: PLC0415 - import time, for an optional part

        return Scan(
            self, rules, area=area, pid=pid, hits_per_rule=hits_per_rule, on_progress=on_progress
        )
