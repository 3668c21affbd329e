"""Choosing who answers for a guest: evidence in, a provider of the neutral interface out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from qvmi.errors import UnknownGuest
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.kernel.discovery import Kernel, discover, recognise
from qvmi.symbols.layout import Symbols
from qvmi.symbols.profile import ProfileCache
from qvmi.view import View

if TYPE_CHECKING:
    from qvmi.semantics.windows.guest import WindowsGuest

__all__ = ["Choices", "remember", "select", "select_in_dump", "select_known", "select_windows"]


@dataclass(frozen=True, slots=True)
class Choices:
    """This is what the user wants to be used.

    Args:
        cache: profiles of kernels seen before; None for none.
        symbols: makes the symbols from a file of the user's; None to read the guest's own.
    """

    cache: ProfileCache | None = None
    symbols: Callable[[KernelImage, AddressSpace], Symbols] | None = None


def select(view: View, choices: Choices) -> LinuxGuest:
    """This works out what runs in a guest and selects the interface for it.

    Raises:
        UnknownGuest: no provider recognises the guest; the evidence says what was seen. Of Windows it
            says which symbols :func:`select_windows` needs.
    """
    try:
        kernel: Kernel = discover(view, cache=choices.cache, symbols=choices.symbols)
    except UnknownGuest as unknown:
        found = _windows().find_windows(view)
        if found is None:
            raise
        seen = (*(f"{one.claim} ({one.source})" for one in found.evidence), *unknown.evidence)
        reason = (
            f"Windows runs here; Machine.windows(ISF) answers, with a symbol file of {found.pdb}"
        )
        raise UnknownGuest(reason, seen) from unknown
    return LinuxGuest(view, kernel)


def select_windows(view: View, isf: Path | None = None) -> "WindowsGuest":
    """This selects the interface for a Windows guest.

    Args:
        view: of the guest.
        isf: a Volatility 3 symbol file of its kernel; without one there are only its facts.

    Raises:
        UnknownGuest: no vCPU runs a Windows kernel.
    """
    from qvmi.semantics.windows.guest import (  # noqa: PLC0415 - import time, for a rare need
        WindowsGuest,
    )

    kernel = _windows().find_windows(view)
    if kernel is None:
        raise UnknownGuest("no Windows kernel found behind the interrupt gates of any vCPU")
    return WindowsGuest(view, kernel, isf)


def _windows() -> ModuleType:
    from qvmi.semantics.windows import (  # noqa: PLC0415 - import time, for a rare need
        discovery,
    )

    return discovery


def select_in_dump(view: View, choices: Choices, vmcoreinfo: Sequence[bytes]) -> LinuxGuest:
    """This works out what ran in memory that stands in a file, of which no register tells.

    Args:
        view: of the memory.
        choices: what the user wants to be used.
        vmcoreinfo: texts of a kernel's notes for crash dumps that came with the memory.

    Raises:
        UnknownGuest: no provider recognises the guest; the evidence says what was seen.
    """
    from qvmi.semantics.linux.kernel.dump_discovery import (  # noqa: PLC0415 - import time, for a rare need
        discover_in_dump,
    )

    kernel = discover_in_dump(
        view.memory, vmcoreinfo=vmcoreinfo, cache=choices.cache, symbols=choices.symbols
    )
    return LinuxGuest(view, kernel)


def select_known(view: View, choices: Choices) -> LinuxGuest | None:
    """This selects the interface for a system seen before, within about a millisecond.

    Returns:
        None where it takes more than that to say what runs: :func:`select` does it.
    """
    if choices.cache is None or choices.symbols is not None:
        return None
    kernel = recognise(view, choices.cache)
    return None if kernel is None else LinuxGuest(view, kernel)


def remember(guest: LinuxGuest, choices: Choices) -> None:
    """This keeps what was learned of a guest's kernel for the next attach; losing it costs time only.

    Raises:
        UsageError: the cache cannot be written.
    """
    profile = guest.kernel.profile
    if choices.cache is not None and profile is not None and profile.changed:
        choices.cache.save(profile, guest.kernel.image.start)
