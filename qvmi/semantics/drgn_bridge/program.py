"""A drgn program on a guest: drgn's own helpers, our memory, and the kernel's types and symbols.

References: drgn's ``Program.set_linux_kernel_custom`` and ``Program.add_memory_segment``.
"""

from collections.abc import Callable
from typing import Final

import drgn
from drgn import FaultError, Program

from qvmi.addr import Pa
from qvmi.errors import GuestError, MemoryFault, SymbolsError
from qvmi.semantics.drgn_bridge.objects import KernelObjects
from qvmi.semantics.drgn_bridge.symbols import GuestSymbols
from qvmi.semantics.drgn_bridge.types import BtfTypes
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.live import LiveSymbols
from qvmi.view import Taken

__all__ = ["Program", "program_of"]

_FINDER: Final = "qvmi"
_ARCHITECTURES: Final = {"x86_64": drgn.Architecture.X86_64, "aarch64": drgn.Architecture.AARCH64}


def program_of(guest: LinuxGuest) -> Program:
    """This makes a program whose every read goes to the guest as it is then.

    drgn's helpers trust what they read: a list that a hostile guest has made a loop keeps one of them
    busy for ever. Our own views do not.

    Raises:
        SymbolsError: the kernel has no BTF, hence no types.
        GuestError: it keeps no VMCOREINFO, by which drgn finds its page tables.
    """
    symbols = guest.kernel.symbols
    btf = symbols.btf if isinstance(symbols, LiveSymbols) else None
    if btf is None or not isinstance(symbols, LiveSymbols):
        raise SymbolsError("drgn gets its types from the kernel's own BTF, which is not there")
    note = guest.vmcoreinfo()
    if not note:
        raise GuestError(
            "this kernel keeps no VMCOREINFO, which tells drgn where its page tables are"
        )
    program = Program(drgn.Platform(_ARCHITECTURES[guest.facts().architecture]))
    for ram in guest.view.memory.ranges:
        program.add_memory_segment(ram.start, ram.size, _reader(guest), physical=True)
    try:
        program.set_linux_kernel_custom(note, guest.view.provenance.taken is not Taken.DUMP)
    except (drgn.BadDataError, ValueError, LookupError, OverflowError) as error:
        raise GuestError(f"drgn cannot use this kernel's VMCOREINFO: {error}") from error
    _register(program, guest, symbols, BtfTypes(program, btf))
    return program


def _reader(guest: LinuxGuest) -> Callable[[int, int, int, bool], bytes]:
    memory, require_current = guest.view.memory, guest.view.require_current

    def read(address: int, count: int, _: int, physical: bool) -> bytes:  # noqa: FBT001 - drgn's way to call it
        del physical
        require_current()
        try:
            return memory.read(Pa(address), count)
        except MemoryFault as fault:
            raise FaultError(str(fault), fault.address) from fault

    return read


def _register(program: Program, guest: LinuxGuest, symbols: LiveSymbols, types: BtfTypes) -> None:
    """This lets drgn find types, objects and symbols; there are no files that names could be of."""
    objects = KernelObjects(program, symbols, types)
    found = GuestSymbols(guest, symbols)

    def find_type(
        _: Program, kinds: drgn.TypeKindSet, name: str, __: str | None
    ) -> drgn.Type | None:
        for one in kinds:
            made = types.find(one, name)
            if made is not None:
                return made
        return _module_type(program, guest, types, kinds, name)

    program.register_type_finder(_FINDER, find_type, enable_index=0)
    program.register_object_finder(
        _FINDER, lambda _, name, flags, __: objects.find(name, flags), enable_index=0
    )
    program.register_symbol_finder(
        _FINDER, lambda _, name, address, one: found.find(name, address, one=one), enable_index=0
    )


def _module_type(
    program: Program, guest: LinuxGuest, base: BtfTypes, kinds: drgn.TypeKindSet, name: str
) -> drgn.Type | None:
    """This is a type of a module that is loaded now."""
    for module in guest.module_types():
        types = BtfTypes(program, module.btf, base)
        for one in kinds:
            made = types.find(one, name)
            if made is not None:
                return made
    return None
