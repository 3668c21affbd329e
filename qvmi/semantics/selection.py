"""Choosing who answers for a guest: evidence in, a provider of the neutral interface out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.discovery import Kernel, discover, recognise
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel_image import KernelImage
from qvmi.symbols.layout import Symbols
from qvmi.symbols.profile import ProfileCache
from qvmi.view import View

__all__ = ["Choices", "remember", "select", "select_in_dump", "select_known"]


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
        UnknownGuest: no provider recognises the guest; the evidence says what was seen.
    """
    kernel: Kernel = discover(view, cache=choices.cache, symbols=choices.symbols)
    return LinuxGuest(view, kernel)


def select_in_dump(view: View, choices: Choices, vmcoreinfo: Sequence[bytes]) -> LinuxGuest:
    """This works out what ran in memory that stands in a file, of which no register tells.

    Args:
        view: of the memory.
        choices: what the user wants to be used.
        vmcoreinfo: texts of a kernel's notes for crash dumps that came with the memory.

    Raises:
        UnknownGuest: no provider recognises the guest; the evidence says what was seen.
    """
    from qvmi.semantics.linux.dump_discovery import (  # noqa: PLC0415 - import time, for a rare need
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
