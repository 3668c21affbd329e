"""The memory of a small Windows, written by hand: as much of it as is looked at.

References: Microsoft, PE Format; Intel SDM volume 3A, 6.14.1; ntddk.h (``KUSER_SHARED_DATA``); Volatility 3
schemas/schema-6.2.0.json. The offsets within the kernel's structures are this file's own.
"""

import json
import struct
from pathlib import Path
from typing import Any

from qvmi.addr import Va
from qvmi.arch.x86_64 import Registers
from qvmi.view import Provenance, Taken, View
from tests.synthetic.page_tables import PAGE, PageTables
from tests.synthetic.ram import Ram
from tests.synthetic.registers import vcpu

__all__ = ["AGE", "BASE", "GUID", "IDT", "NT", "POOL", "WindowsMemory", "write_isf"]

BASE = 0xFFFF_F802_12E0_0000
IMAGE_SIZE = 0x4_0000
GUID = "1B72224D37B8179228200ED8994498B2"
AGE = 3
GATE = BASE + 0x1_2340
SHARED = 0xFFFF_F780_0000_0000
IDT = 0xFFFF_F802_1000_0000
POOL = 0xFFFF_A800_0000_0000
TABLES_PA, IDT_PA, SHARED_PA, IMAGE_PA, POOL_PA = 0x1000, 0x3_0000, 0x3_1000, 0x10_0000, 0x20_0000
"""From where its memory begins."""
SIZE = 4 << 20
PROCESS_HEAD, MODULE_HEAD = 0x2_0000, 0x2_0100
"""From the kernel's base."""
NT, DEBUG, RECORD = 0xF8, 0x3000, 0x3100
EPROCESS_LINKS = 0x10
EPROCESS_SIZE = MODULE_SIZE = 0x100


class WindowsMemory:
    """This is a Windows at rest: its kernel, and no process and no module yet.

    Args:
        pdb: the name of its kernel's symbols.
        start: the physical address where its memory begins.
    """

    def __init__(self, *, pdb: bytes = b"ntkrnlmp.pdb", start: int = 0) -> None:
        self.start = start
        self.ram = Ram(SIZE, start=start)
        self.tables = PageTables(self.ram, start + TABLES_PA, free=start + TABLES_PA + PAGE)
        self.tables.map_run(BASE, start + IMAGE_PA, IMAGE_SIZE)
        self.tables.map(IDT, start + IDT_PA)
        self.tables.map(SHARED, start + SHARED_PA)
        self.tables.map_run(POOL, start + POOL_PA, 0x10 * PAGE)
        self.free = POOL
        self.set_gate(GATE)
        self._write_headers(pdb)
        shared = start + SHARED_PA
        self.ram.write(shared + 0x8, struct.pack("<QI", 3600 * 10_000_000, 0))
        self.ram.write(shared + 0x14, struct.pack("<Q", 133_000_000_000_000_000))
        self.ram.write(shared + 0x260, struct.pack("<I", 19045))
        self.ram.write(shared + 0x26C, struct.pack("<II", 10, 0))
        for head in (PROCESS_HEAD, MODULE_HEAD):
            self.write(BASE + head, struct.pack("<QQ", BASE + head, BASE + head))

    def _write_headers(self, pdb: bytes) -> None:
        self.write(BASE, b"MZ")
        self.write(BASE + 0x3C, struct.pack("<I", NT))
        self.write(BASE + NT, b"PE\0\0" + struct.pack("<H", 0x8664))
        optional = BASE + NT + 24
        self.write(optional, struct.pack("<H", 0x20B))
        self.write(optional + 56, struct.pack("<I", IMAGE_SIZE))
        self.write(optional + 108, struct.pack("<I", 16))
        self.write(optional + 112 + 6 * 8, struct.pack("<II", DEBUG, 2 * 28))
        record = b"RSDS" + struct.pack("<IHH", 0x1B72224D, 0x37B8, 0x1792)
        record += bytes.fromhex("28200ED8994498B2") + struct.pack("<I", AGE) + pdb + b"\0"
        other = struct.pack("<12xIII4x", 12, 4, DEBUG)
        self.write(BASE + DEBUG, other + struct.pack("<12xIII4x", 2, len(record), RECORD))
        self.write(BASE + RECORD, record)

    def set_gate(self, handler: int) -> None:
        """This lets gate 0 of the interrupt table lead to a handler."""
        low, middle, high = handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32
        gate = struct.pack("<HHHHII", low, 0x10, 0x8E00, middle, high, 0)
        self.ram.write(self.start + IDT_PA, gate)

    def write(self, va: int, data: bytes) -> None:
        """This writes into the image or the pool."""
        self.ram.write(self._pa(va), data)

    def _pa(self, va: int) -> int:
        return self.start + (va - BASE + IMAGE_PA if va >= BASE else va - POOL + POOL_PA)

    def view(self, *vcpus: Registers) -> View:
        """This is how it is looked at: by one vCPU that runs the kernel, unless others are given."""
        running = vcpus or (vcpu(self.tables.root, idt_base=IDT),)
        return View(running, self.ram, Provenance(Taken.PAUSED, 0.0))

    def add_process(self, pid: int, name: bytes, *, parent: int = 0, created: int = 0) -> Va:
        """This adds an ``_EPROCESS``; the time is in 100 ns since 1601."""
        at = self._allocate(EPROCESS_SIZE)
        self.write(at + 8, struct.pack("<Q", pid))
        self.write(at + 0x20, struct.pack("<QQQ", created, 0, parent))
        self.write(at + 0x38, name)
        self.write(at + 0x48, struct.pack("<I", 1))
        self._link(at + EPROCESS_LINKS, BASE + PROCESS_HEAD)
        return Va(at)

    def add_module(self, name: str, base: int, size: int) -> Va:
        """This adds a ``_LDR_DATA_TABLE_ENTRY``."""
        at, text = self._allocate(MODULE_SIZE), name.encode("utf-16-le")
        buffer = self._allocate(len(text))
        self.write(buffer, text)
        self.write(at + 0x30, struct.pack("<QQI", base, 0, size))
        held = struct.pack("<HHIQ", len(text), len(text), 0, buffer)
        self.write(at + 0x48, held + held)
        self._link(at, BASE + MODULE_HEAD)
        return Va(at)

    def _allocate(self, size: int) -> int:
        at = self.free
        self.free += -(-size // 16) * 16
        return at

    def _link(self, entry: int, head: int) -> None:
        last = self.ram.read_u64(self._pa(head + 8))
        self.write(entry, struct.pack("<QQ", head, last))
        self.write(last, struct.pack("<Q", entry))
        self.write(head + 8, struct.pack("<Q", entry))


VOID = {"kind": "base", "name": "void"}
ULONG, USHORT = ({"kind": "base", "name": name} for name in ("unsigned long", "unsigned short"))
LIST_ENTRY, TEXT, TIME = (
    {"kind": "struct", "name": "_LIST_ENTRY"},
    {"kind": "struct", "name": "_UNICODE_STRING"},
    {"kind": "union", "name": "_LARGE_INTEGER"},
)
NAME = {"kind": "array", "count": 15, "subtype": {"kind": "base", "name": "unsigned char"}}


def _pointer(to: dict[str, str]) -> dict[str, object]:
    return {"kind": "pointer", "subtype": to}


STRUCTS: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {
    "_LIST_ENTRY": {"Flink": (0, _pointer(LIST_ENTRY)), "Blink": (8, _pointer(LIST_ENTRY))},
    "_EPROCESS": {
        "UniqueProcessId": (8, _pointer(VOID)),
        "ActiveProcessLinks": (EPROCESS_LINKS, LIST_ENTRY),
        "CreateTime": (0x20, TIME),
        "ExitTime": (0x28, TIME),
        "InheritedFromUniqueProcessId": (0x30, _pointer(VOID)),
        "ImageFileName": (0x38, NAME),
        "ActiveThreads": (0x48, ULONG),
    },
    "_UNICODE_STRING": {
        "Length": (0, USHORT),
        "MaximumLength": (2, USHORT),
        "Buffer": (8, _pointer(USHORT)),
    },
    "_LDR_DATA_TABLE_ENTRY": {
        "InLoadOrderLinks": (0, LIST_ENTRY),
        "DllBase": (0x30, _pointer(VOID)),
        "SizeOfImage": (0x40, ULONG),
        "FullDllName": (0x48, TEXT),
        "BaseDllName": (0x58, TEXT),
    },
}
UNUSED = (
    "_ETHREAD _KTHREAD _ERESOURCE _EX_FAST_REF _TOKEN _OBJECT_HEADER _FILE_OBJECT _DEVICE_OBJECT"
    " _CM_KEY_BODY _CMHIVE _CM_KEY_NODE _CM_KEY_VALUE _HMAP_ENTRY _MMVAD_SHORT _MMVAD _KSYSTEM_TIME"
    " _KMUTANT _DRIVER_OBJECT _OBJECT_SYMBOLIC_LINK _CONTROL_AREA _SHARED_CACHE_MAP _VACB"
    " _POOL_TRACKER_BIG_PAGES _POOL_HEADER _IMAGE_DOS_HEADER _KTIMER"
)
"""Types that Volatility wants to be there, whatever it is asked."""
BASES = {
    "unsigned char": (1, False),
    "unsigned short": (2, False),
    "unsigned long": (4, False),
    "long long": (8, True),
    "unsigned long long": (8, False),
    "pointer": (8, False),
}


def write_isf(path: Path, *, guid: str = GUID, age: int = AGE) -> Path:
    """This writes the symbol file of this Windows, or of another build."""
    types = STRUCTS | {name: {} for name in UNUSED.split()}
    document = {
        "metadata": {
            "format": "6.2.0",
            "producer": {"name": "tests", "version": "1.0.0", "datetime": "2026-01-01T00:00:00"},
            "windows": {
                "pdb": {
                    "GUID": guid,
                    "age": age,
                    "database": "ntkrnlmp.pdb",
                    "machine_type": 0x8664,
                }
            },
        },
        "base_types": {
            name: {"kind": "int", "size": size, "signed": signed, "endian": "little"}
            for name, (size, signed) in BASES.items()
        }
        | {"void": {"kind": "void", "size": 0, "signed": False, "endian": "little"}},
        "enums": {},
        "symbols": {
            "PsActiveProcessHead": {"address": PROCESS_HEAD},
            "PsLoadedModuleList": {"address": MODULE_HEAD},
        },
        "user_types": {
            name: {"kind": "struct", "size": 0x100, "fields": _fields(members)}
            for name, members in types.items()
        }
        | {
            "_LARGE_INTEGER": {
                "kind": "union",
                "size": 8,
                "fields": _fields({"QuadPart": (0, {"kind": "base", "name": "long long"})}),
            }
        },
    }
    path.write_text(json.dumps(document))
    return path


def _fields(members: dict[str, tuple[int, dict[str, Any]]]) -> dict[str, object]:
    return {name: {"offset": offset, "type": kind} for name, (offset, kind) in members.items()}
