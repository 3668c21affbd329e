"""What drgn needs of a kernel, and what is said where the kernel lacks it."""

import pytest

from qvmi.errors import GuestError, SymbolsError
from qvmi.semantics.drgn_bridge import program_of
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.discovery import discover
from tests.synthetic.guest import Guest, GuestOptions


def linux(guest: Guest) -> LinuxGuest:
    return LinuxGuest(guest.view(), discover(guest.view()))


def test_a_kernel_without_a_note_is_refused() -> None:
    with pytest.raises(GuestError, match="keeps no VMCOREINFO"):
        program_of(linux(Guest(GuestOptions(note=False))))


def test_a_note_that_drgn_cannot_use_is_refused_in_our_words() -> None:
    with pytest.raises(GuestError, match="drgn cannot use this kernel's VMCOREINFO"):
        program_of(linux(Guest()))


def test_symbols_from_a_file_are_refused() -> None:
    guest = Guest(GuestOptions(types=False))
    known = guest.kernel.symbols
    known.addresses["linux_banner"] = guest.rodata + 0x100
    kernel = discover(guest.view(), symbols=lambda _, __: known)
    with pytest.raises(SymbolsError, match="BTF"):
        program_of(LinuxGuest(guest.view(), kernel))
