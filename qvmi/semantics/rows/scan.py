"""What a scan of memory finds: hits, and who owns the memory that they lie in."""

import msgspec

from qvmi.addr import Pa, Va

__all__ = ["Owner", "ScanHit"]


class Owner(msgspec.Struct, frozen=True, gc=False):
    """This is somebody who has a piece of memory, and what of theirs lies there.

    Args:
        kind: ``process``, ``page cache``, ``kernel``, ``module``, ``slab``, ``stack``, ``vmalloc``,
            ``page table``, ``reserved``, ``kernel page`` or ``free``.
        name: of the process, of the file with its path, of the symbol nearest before, of the module,
            of the slab's cache, of the thread whose stack it is, or of what asked for the memory; empty
            where there is none. It is the guest's word: escape it for whatever it is printed on.
        pid: of the process or thread; None for others.
        address: where it is seen there: in the process's memory or in the kernel's; None for what is
            not mapped.
        offset: in the file, from the symbol, in the slab's object; None for others.
    """

    kind: str
    name: str = ""
    pid: int | None = None
    address: Va | None = None
    offset: int | None = None


class ScanHit(msgspec.Struct, frozen=True, gc=False):
    """This is one place at which a pattern of a rule matches.

    Args:
        rule: its name.
        pattern: its identifier within the rule, such as ``$a``.
        address: the physical address of the first byte.
        virtual: its virtual address, where memory was scanned in virtual order; else None.
        length: of the match in bytes.
        data: the first 32 of them, as hexadecimal digits.
        owners: who has the page of the first byte; several where it is shared, none where nobody
            could be told.
    """

    rule: str
    pattern: str
    address: Pa
    virtual: Va | None
    length: int
    data: str
    owners: tuple[Owner, ...]
