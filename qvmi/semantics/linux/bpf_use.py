"""Who uses eBPF programs: links that attach them, sockets that they filter for, descriptors that hold them.

References: Linux include/linux/bpf.h (``struct bpf_link``, since 5.8 with its type in ``link_idr``;
``struct bpf_raw_tp_link``), net/core/dev.c (``struct bpf_xdp_link``), include/linux/filter.h
(``struct sk_filter``), kernel/bpf/syscall.c (``bpf_prog_fops``, ``bpf_link_fops``, since 6.11 also
``bpf_link_fops_poll``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from struct import Struct
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.idr import Idr
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.files import OpenFile
from qvmi.semantics.rows.sockets import Socket
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["LEVELS", "LIMIT", "BpfUsers", "TypeNames", "Use"]

LEVELS: Final = 6
"""Nodes on the way to an id: six times six bits cover ``INT_MAX``."""
LIMIT: Final = 1 << 16
"""Programs, or links, and nodes: a guest that has thousands has many."""
_MAX_GAPS: Final = 1000
_MAX_NAME: Final = 512
_POINTER: Final = Struct("<Q")
_DEVICE_NAME: Final = 16
"""``IFNAMSIZ``."""
_SMALL: Final = frozenset({"TIME_WAIT", "SYN_RECV"})
"""Sockets of these states are too small to have a filter."""

TypeNames = Callable[[str, int], str]
"""Names the value of one of the kernel's enumerations, such as ``bpf_link_type``."""


@dataclass(slots=True)
class Use:
    """This is who uses one program."""

    attached: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)


class BpfUsers:
    """This finds who uses programs.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        type_names: names the kinds of links.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, type_names: TypeNames) -> None:
        self._space = space
        self._symbols = symbols
        self._type_names = type_names
        self._read_pointer = space.unpacker(_POINTER)
        self._read_file = compile_reader(
            space,
            (field_offset(symbols, "file", "f_op"), "Q"),
            (field_offset(symbols, "file", "private_data"), "Q"),
        )
        self._filter = field_offset(symbols, "sock", "sk_filter")
        self._filtering = field_offset(symbols, "sk_filter", "prog")
        self._program_files = symbols.find("bpf_prog_fops")
        names = ("bpf_link_fops", "bpf_link_fops_poll")
        self._link_files = {at for at in map(symbols.find, names) if at is not None}
        self._details = {"xdp": self._device, "raw_tracepoint": self._tracepoint}

    def of_all(
        self, files: Iterable[OpenFile], sockets: Iterable[Socket], result: ListWalk[Any]
    ) -> dict[int, Use]:
        """This tells of each program, by its address, who uses it; what is wrong is a gap."""
        uses: dict[int, Use] = {}
        links = self._links(uses, result)
        for file in files:
            if file.kind != "anonymous":
                continue
            program = self._tried(result, "struct file", file.address, self._held_by, links)
            if program:
                uses.setdefault(program, Use()).pids.add(file.pid)
        for socket in sockets:
            if socket.state in _SMALL:
                continue
            program = self._tried(result, "sock.sk_filter", socket.address, self._filter_of)
            if program:
                use = uses.setdefault(program, Use())
                where = f"socket {socket.inode}"
                use.attached += [] if where in use.attached else [where]
                use.pids |= set() if socket.pid is None else {socket.pid}
        return uses

    def _links(self, uses: dict[int, Use], result: ListWalk[Any]) -> dict[int, int]:
        """This adds what links say, and gives the program of each, by the link's address."""
        programs: dict[int, int] = {}
        at = self._symbols.find("link_idr")
        if at is None:
            return programs  # before 5.8
        try:
            table = Idr(
                self._space,
                self._symbols,
                structure="link_idr",
                at=at,
                limit=LIMIT,
                levels=LEVELS,
            )
            read = compile_reader(self._space, *self._link_members())
            for number, link in table.entries(result):
                add = partial(self._add_link, number, read, uses, programs)
                self._tried(result, "struct bpf_link", link, add)
        except (SymbolsError, WalkFailed) as error:
            result.gaps.append(Gap("link_idr", at, str(error)))
        return programs

    def _link_members(self) -> Iterable[tuple[int, str]]:
        for name, form in (("id", "I"), ("type", "I"), ("prog", "Q")):
            yield field_offset(self._symbols, "bpf_link", name), form

    def _add_link(
        self,
        number: int,
        read: Callable[[int], Any],
        uses: dict[int, Use],
        programs: dict[int, int],
        link: int,
    ) -> int:
        own_number, kind, program = read(link)
        if own_number != number:
            raise Implausible(f"link {number} says that it is {own_number}")
        programs[link] = program
        attached = uses.setdefault(program, Use()).attached
        name = self._type_names("bpf_link_type", kind)
        attached.append(name)
        details = self._details.get(name)
        if details is not None:
            attached[-1] = f"{name} {details(link)}".rstrip()
        return int(program)

    def _device(self, link: int) -> str:
        device = self._read_pointer(link + field_offset(self._symbols, "bpf_xdp_link", "dev"))[0]
        if not device:
            return ""  # the interface is gone
        name = Va(device + field_offset(self._symbols, "net_device", "name"))
        return text_of(self._space.read(name, _DEVICE_NAME).partition(b"\0")[0])

    def _tracepoint(self, link: int) -> str:
        at = link + field_offset(self._symbols, "bpf_raw_tp_link", "btp")
        at = self._read_pointer(at)[0] + field_offset(self._symbols, "bpf_raw_event_map", "tp")
        at = self._read_pointer(at)[0] + field_offset(self._symbols, "tracepoint", "name")
        name = self._space.read_string(Va(self._read_pointer(at)[0]), _MAX_NAME)
        return text_of(name)

    def _held_by(self, file: int, links: dict[int, int]) -> int:
        operations, private = self._read_file(file)
        if operations == self._program_files:
            return int(private)
        return links.get(private, 0) if operations in self._link_files else 0

    def _filter_of(self, sock: int) -> int:
        held = self._read_pointer(sock + self._filter)[0]
        return int(self._read_pointer(held + self._filtering)[0]) if held else 0

    def _tried(
        self,
        result: ListWalk[Any],
        structure: str,
        at: int,
        look: Callable[..., int],
        *more: object,
    ) -> int:
        """This looks at one thing; what cannot be looked at is a gap, and no program."""
        try:
            return look(at, *more)
        except (MemoryFault, Implausible, SymbolsError) as error:
            if len(result.gaps) < _MAX_GAPS:
                result.gaps.append(Gap(structure, Va(at), str(error)))
            return 0
