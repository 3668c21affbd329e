"""Evidence in a guest for Volatility's plugins to find: what a rootkit would leave, written into its memory.

References: Linux arch/x86/include/asm/desc_defs.h (``struct gate_struct``), include/linux/netfilter.h
(``struct nf_hook_entries``), include/linux/notifier.h, include/linux/tty_ldisc.h, include/linux/module.h.

Symbols lie where the guest's own /proc/kallsyms says. What a plugin must say follows from what was written.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import field_offset
from tests.guests.lab import Guest
from tests.guests.tampering import GuestRam, guest_ram

__all__ = ["HIDDEN_MODULE", "Planted", "Row", "Soil", "planted"]

Row = Mapping[str, object]

HIDDEN_MODULE: Final = "ifb"
"""It is loaded in earnest, and then taken off the list of modules."""

_UNUSED_SYSCALL: Final = 183
"""``afs_syscall``, which no kernel has."""
_OVERFLOW: Final = 4
"""The interrupt that no program of the guest's causes."""
_OWNER, _SHARER = "user-1000", "nobody"
"""The second process gets the credentials of the first."""
_TTY: Final = b"ttyS0"
_LOCAL_IN: Final = 1
_IPV4: Final = 2
_PRIORITY: Final = -77

_SYMBOLS: Final = (
    *("idt_table", "init_net", "keyboard_notifier_list", "page_offset_base", "sys_call_table"),
    *("tcp4_seq_ops", "tty_drivers"),
)
_CODE: Final = b"\xc3"
"""An x86 ``ret``; nobody calls it."""
_PAGE: Final = 4096
_MAX_NODES: Final = 64
"""Of a list of the guest's: there are about a dozen drivers of terminals."""
_POINTER: Final = struct.Struct("<Q")
_LINKS: Final = struct.Struct("<QQ")
_GATE: Final = struct.Struct("<HHHHII")


@dataclass(frozen=True, slots=True)
class Planted:
    """This is how a plugin's answer must differ from the one before something was planted.

    Attributes:
        appears: the rows that are new, as far as cells are named; there must be no other new one.
        vanishes: the rows that are not there any more, likewise.
        some: whether the plugin leaves out some of the new ones.
    """

    appears: tuple[Row, ...]
    vanishes: tuple[Row, ...] = ()
    some: bool = False

    def check(self, before: Sequence[Row], after: Sequence[Row]) -> None:
        """This compares the rows of two answers with it.

        Raises:
            AssertionError: something else is new, or gone, or something is not.
        """
        new, gone = _without(after, before), _without(before, after)
        assert _unlike(gone, self.vanishes) == ([], []), gone
        unexpected, missing = _unlike(new, self.appears)
        assert not unexpected, unexpected
        assert not missing or (self.some and len(missing) < len(self.appears)), missing


def _without(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """These are the rows that are not among others, each as often as it is missing there."""
    left, new = list(others), []
    for row in rows:
        if row in left:
            left.remove(row)
        else:
            new.append(row)
    return new


def _unlike(rows: Sequence[Row], wanted: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """These are the rows that nobody wanted, and those that are missing."""
    missing, unwanted = list(wanted), []
    for row in rows:
        like = next((one for one in missing if one.items() <= row.items()), None)
        if like is None:
            unwanted.append(row)
        else:
            missing.remove(like)
    return unwanted, missing


@dataclass(frozen=True, slots=True)
class Soil:
    """This is what the guest said of itself for the planting.

    Attributes:
        symbols: addresses by name.
        namespace: the number of its first network namespace.
    """

    symbols: Mapping[str, int]
    namespace: int

    @classmethod
    def prepared(cls, guest: Guest) -> "Soil":
        """This loads the module to hide, and asks."""
        guest.ask(f"load {HIDDEN_MODULE}")
        names = "\\|".join(_SYMBOLS)
        said = guest.run(f"grep -w '{names}' /proc/kallsyms; readlink /proc/1/ns/net").decode()
        rows = re.findall(r"^([0-9a-f]+) \w (\w+)", said, re.MULTILINE)
        (namespace,) = re.findall(r"^net:\[(\d+)\]$", said, re.MULTILINE)
        return cls({name: int(digits, 16) for digits, name in rows}, int(namespace))


@contextmanager
def planted(guest: Guest, linux: LinuxGuest, soil: Soil) -> Iterator[Mapping[str, Planted]]:
    """Plant all of it for the length of the block, in a guest that stands still.

    Returns:
        What must come of it, by the names of plugins.
    """
    with guest_ram(guest) as ram, ExitStack() as undo:
        ground = _Ground(linux, soil, ram, undo, _room(linux, soil))
        yield {
            "linux.malware.check_syscall.Check_syscall": ground.system_call(),
            "linux.malware.check_idt.Check_idt": ground.interrupt_gate(),
            "linux.malware.check_creds.Check_creds": ground.shared_credentials(),
            "linux.malware.tty_check.Tty_Check": ground.line_discipline(),
            "linux.malware.keyboard_notifiers.Keyboard_notifiers": ground.keyboard_notifier(),
            "linux.malware.check_afinfo.Check_afinfo": ground.protocol_operations(),
            "linux.malware.netfilter.Netfilter": ground.packet_hook(),
            **ground.hidden_module(),
        }


def _room(linux: LinuxGuest, soil: Soil) -> Va:
    """This is a page that is no module's, by the address that the kernel knows all RAM by.

    It is the end of a process's stack, where it has its environment.
    """
    process = next(row for row in linux.processes() if row.name == _SHARER)
    stack = next(row for row in linux.mappings(process) if row.name == "[stack]")
    pa = linux.user_space(process).translate(Va(stack.end - _PAGE))
    base = linux.kernel.space.read(Va(soil.symbols["page_offset_base"]), _POINTER.size)
    return Va(_POINTER.unpack(base)[0] + pa)


@dataclass(slots=True)
class _Ground:
    """This is the guest's memory, planted in until `undo` closes.

    Attributes:
        room: the address of room for structs that the kernel has not got, which grows with each.
    """

    linux: LinuxGuest
    soil: Soil
    ram: GuestRam
    undo: ExitStack
    room: Va

    def system_call(self) -> Planted:
        table, handler = self.soil.symbols["sys_call_table"], self._put(_CODE)
        self._point(table + _UNUSED_SYSCALL * _POINTER.size, handler)
        place = {"Table Name": "64bit", "Index": _UNUSED_SYSCALL}
        found = {**place, "Handler Address": handler, "Handler Symbol": "UNKNOWN"}
        return Planted((found,), (place,))

    def interrupt_gate(self) -> Planted:
        gate, handler = self.soil.symbols["idt_table"] + _OVERFLOW * _GATE.size, self._put(_CODE)
        _, selector, kind, *_ = _GATE.unpack(self._read(gate, _GATE.size))
        low, middle, high = handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32
        self._write(gate, _GATE.pack(low, selector, kind, middle, high, 0))
        found = {"Index": _OVERFLOW, "Address": handler, "Module": None, "Symbol": None}
        return Planted((found,), ({"Index": _OVERFLOW, "Symbol": "asm_exc_overflow"},))

    def shared_credentials(self) -> Planted:
        processes = {row.name: row for row in self.linux.processes()}
        owner, sharer = processes[_OWNER], processes[_SHARER]
        offset = self._offset("task_struct", "cred")
        shared = self._pointer(owner.address + offset)
        self._point(sharer.address + offset, shared)
        return Planted(({"CredVAddr": shared, "PIDs": f"{owner.pid}, {sharer.pid}"},))

    def line_discipline(self) -> Planted:
        discipline = self._pointer(self._tty() + self._offset("tty_struct", "ldisc"))
        place = discipline + self._offset("tty_ldisc", "ops")
        operations = bytearray(self._read(self._pointer(place), self._size("tty_ldisc_ops")))
        called = self._offset("tty_ldisc_ops", "receive_buf")
        handler = self._put(_CODE)
        _POINTER.pack_into(operations, called, handler)
        self._point(place, self._put(bytes(operations)))
        name = _TTY.decode()
        return Planted(
            ({"Name": name, "Address": handler, "Module": None, "Symbol": None},),
            ({"Name": name, "Module": "__kernel__", "Symbol": "n_tty_receive_buf"},),
        )

    def keyboard_notifier(self) -> Planted:
        head = self.soil.symbols["keyboard_notifier_list"]
        head += self._offset("atomic_notifier_head", "head")
        handlers = [self._put(_CODE) for _ in range(2)]
        for handler in reversed(handlers):
            following = self._pointer(head)
            self._point(head, self._struct("notifier_block", notifier_call=handler, next=following))
        return Planted(
            tuple({"Address": place, "Module": None, "Symbol": None} for place in handlers)
        )

    def protocol_operations(self) -> Planted:
        handler = self._put(_CODE)
        show = self.soil.symbols["tcp4_seq_ops"] + self._offset("seq_operations", "show")
        self._point(show, handler)
        found = {"Symbol Name": "tcp4_seq_ops", "Member": "show", "Handler Address": handler}
        return Planted((found,))

    def packet_hook(self) -> Planted:
        handler = self._put(_CODE)
        hook = self._struct("nf_hook_ops", hook=handler, pf=_IPV4, priority=_PRIORITY)
        entries = self._put(
            struct.pack("<QQQQ", 1, handler, 0, hook)
        )  # count, hook, its data, origin
        hooks = self.soil.symbols["init_net"] + self._offset("net", "nf")
        hooks += self._offset("netns_nf", "hooks_ipv4") + _LOCAL_IN * _POINTER.size
        assert not self._pointer(hooks), "the guest has a hook there already"
        self._point(hooks, entries)
        where = {"Net NS": self.soil.namespace, "Proto": "IPV4", "Hook": "LOCAL_IN"}
        found = {"Priority": _PRIORITY, "Handler": handler, "Module": None, "Is Hooked": "True"}
        return Planted(({**where, **found},))

    def hidden_module(self) -> dict[str, Planted]:
        module = next(row for row in self.linux.modules() if row.name == HIDDEN_MODULE)
        entry = module.struct_address + self._offset("module", "list")
        following, before = _LINKS.unpack(self._read(entry, _LINKS.size))
        self._point(before, following)
        self._point(following + _POINTER.size, before)
        found = {"Module Name": HIDDEN_MODULE, "Load Arguments": "numifbs=None"}
        seen = {"Name": HIDDEN_MODULE, "In sysfs": True, "In scan": True}
        return {
            "linux.lsmod.Lsmod": Planted((), ({"Offset": module.struct_address, **found},)),
            "linux.malware.check_modules.Check_modules": Planted((found,)),
            "linux.malware.hidden_modules.Hidden_modules": Planted(
                ({"Offset": module.struct_address, **found},)
            ),
            "linux.malware.modxview.Modxview": Planted(
                ({**seen, "In procfs": False},), ({**seen, "In procfs": True},)
            ),
        }

    def _tty(self) -> int:
        """This is the terminal's ``tty_struct``."""
        head = node = self.soil.symbols["tty_drivers"]
        node_at = self._offset("tty_driver", "tty_drivers")
        name_at = self._offset("tty_struct", "name")
        for _ in range(_MAX_NODES):
            node = self._pointer(node)
            if node == head:
                break
            (count,) = struct.unpack(
                "<I", self._read(node - node_at + self._offset("tty_driver", "num"), 4)
            )
            ttys = self._pointer(node - node_at + self._offset("tty_driver", "ttys"))
            for index in range(count if ttys else 0):
                tty = self._pointer(ttys + index * _POINTER.size)
                if tty and self._read(tty + name_at, len(_TTY) + 1) == _TTY + b"\0":
                    return tty
        raise AssertionError("the guest has no such terminal")

    def _struct(self, kind: str, **members: int) -> Va:
        """This puts a struct into the room; members are pointers or C ints."""
        content = bytearray(self._size(kind))
        for name, value in members.items():
            wide = value >> 32 > 0
            layout = "<Q" if wide else "<i" if name == "priority" else "<B"
            struct.pack_into(layout, content, self._offset(kind, name), value)
        return self._put(bytes(content))

    def _put(self, content: bytes) -> Va:
        """This writes something into the room, and gives its address."""
        place = self.room
        self._write(place, content)
        self.room = Va(place + len(content) + -len(content) % 16)
        return place

    def _offset(self, struct_name: str, member: str) -> int:
        return field_offset(self.linux.kernel.symbols, struct_name, member)

    def _size(self, struct_name: str) -> int:
        size = self.linux.kernel.symbols.size_of(struct_name)
        assert size is not None
        return size

    def _read(self, va: int, size: int) -> bytes:
        return self.linux.kernel.space.read(Va(va), size)

    def _pointer(self, va: int) -> int:
        value: int = _POINTER.unpack(self._read(va, _POINTER.size))[0]
        return value

    def _point(self, va: int, target: int) -> None:
        self._write(va, _POINTER.pack(target))

    def _write(self, va: int, content: bytes) -> None:
        """This writes within one page."""
        pa = self.linux.kernel.space.translate(Va(va))
        self.undo.enter_context(self.ram.altered(pa, content))
