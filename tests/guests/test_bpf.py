"""eBPF programs are seen as the guest's own kernel describes them to bpf(2)."""

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import pytest

import qvmi
from qvmi import Pa, Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.bpf import BpfProgram
from qvmi.symbols.layout import address, field_offset
from tests.guests.exotic_guests import EXOTIC_CONFIGS, exotic_guest
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.lab.control import Row
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

PROGRAM_TYPES: Final = {
    1: "socket_filter",
    2: "kprobe",
    3: "sched_cls",
    6: "xdp",
    8: "cgroup_skb",
    17: "raw_tracepoint",
    26: "tracing",
}
"""``enum bpf_prog_type`` of include/uapi/linux/bpf.h."""
MAP_TYPES: Final = {1: "hash", 2: "array"}
LINK_TYPES: Final = {1: "raw_tracepoint", 6: "xdp"}
FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
NOWHERE: Final = 0x4141414141414140
HUGE: Final = 0x7FFFFFFF


@pytest.fixture(scope="module", params=EXOTIC_CONFIGS, ids=lambda config: str(config.kernel))
def exotic(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield exotic_guest(lab, stack, request.param)


@pytest.fixture(scope="module")
def programs(exotic: Guest, profiles: Path) -> tuple[BpfProgram, ...]:
    with qvmi.attach_sync(exotic.qmp, cache=profiles) as machine:
        listing = machine.guest.bpf_programs()
    assert not listing.gaps
    return listing.items


def _kind(guest: Guest, kind: str) -> dict[int, Row]:
    """This is what bpf(2) tells in the guest, by id."""
    return {row["number"]: row for row in guest.ask("bpf") if row["kind"] == kind}


def test_each_is_described_as_the_kernel_describes_it(
    exotic: Guest, programs: tuple[BpfProgram, ...], proof_count: Callable[[int], None]
) -> None:
    truth = _kind(exotic, "program")
    maps = _kind(exotic, "map")
    assert [row.id for row in programs] == sorted(truth)
    for row in programs:
        true = truth[row.id]
        assert row.type == PROGRAM_TYPES[true["type"]]
        assert row.name == true["name"]
        assert bytes.fromhex(row.tag) == true["tag"].encode("latin-1")
        assert round(row.load_time_s * 1e9) == true["load_time"]
        assert (row.uid, row.instructions) == (true["uid"], true["instructions"])
        assert (row.jit_address or 0, row.jit_size) == (true["jited_at"], true["jited_size"])
        assert row.jited == bool(true["jited_size"])
        assert [(one.id, one.type, one.name) for one in row.maps] == [
            (number, MAP_TYPES[maps[number]["type"]], maps[number]["name"])
            for number in true["maps"]
        ]
    proof_count(len(programs))


def test_links_and_sockets_tell_where_they_are_attached(
    exotic: Guest, programs: tuple[BpfProgram, ...]
) -> None:
    attached: dict[int, list[str]] = {}
    for link in _kind(exotic, "link").values():
        where = link["tracepoint"] or "lo" * (link["interface"] == 1)
        attached.setdefault(link["program"], []).append(f"{LINK_TYPES[link['type']]} {where}")
    (filtering,) = (row for row in programs if row.name == "qvmi_filter")
    (where,) = filtering.attached
    links = {one.target for one in exotic.files().values()}
    assert f"socket:[{where.removeprefix('socket ')}]" in links
    others = {row.id: list(row.attached) for row in programs if row.attached and row != filtering}
    assert others == attached
    assert {row.name: row.target for row in programs if row.target} == {
        "qvmi_fentry": "security_path_rename"
    }


def test_processes_that_hold_one_are_those_whose_descriptors_say_so(
    exotic: Guest, programs: tuple[BpfProgram, ...]
) -> None:
    pids: dict[int, set[int]] = {}
    for row in exotic.ask("files"):
        for number in re.findall(r"^prog_id:\s*(\d+)$", row["info"], re.MULTILINE):
            pids.setdefault(int(number), set()).add(row["pid"])
    held = {row.id: set(row.pids) for row in programs if row.name != "qvmi_filter"}
    assert held == pids
    (own,) = {pid for holders in pids.values() for pid in holders}
    assert [row.pids for row in programs if row.name == "qvmi_filter"] == [(own,)]


# ------------------------------------------------------------------------------- a kernel that lies


class Den:
    """This is a guest that stands still, what was understood of it, and its memory to write to."""

    def __init__(self, linux: LinuxGuest, ram: GuestRam) -> None:
        self.linux = linux
        self.ram = ram
        self.programs = self.look()[0]

    def look(self) -> tuple[dict[str, BpfProgram], set[Va | None]]:
        """These are the programs by name, and where gaps are."""
        with cpu_seconds(FEW_SECONDS):
            listing = self.linux.bpf_programs()
        return {row.name: row for row in listing}, {gap.address for gap in listing.gaps}

    def offset(self, type_name: str, name: str) -> int:
        return field_offset(self.linux.kernel.symbols, type_name, name)

    def at(self, symbol: str) -> int:
        return address(self.linux.kernel.symbols, symbol)

    def word(self, va: int) -> int:
        return int.from_bytes(self.linux.kernel.space.read(Va(va), 8), "little")

    def pa(self, va: int) -> Pa:
        return self.linux.kernel.space.translate(Va(va))

    def slots(self, table: str) -> int:
        """These are the entries of the only node of a table."""
        root = self.word(
            self.at(table) + self.offset("idr", "idr_rt") + self.offset("xarray", "xa_head")
        )
        return (root & ~3) + self.offset("xa_node", "slots")

    def link_of(self, program: BpfProgram) -> int:
        """This is the address of the link that attaches a program: one of the first two."""
        links = (self.word(self.slots("link_idr") + 8 * number) for number in (1, 2))
        own = self.offset("bpf_link", "prog")
        return next(link for link in links if self.word(link + own) == program.address)

    def aux(self, name: str, member: str) -> int:
        """This is the address of a member of a program's ``struct bpf_prog_aux``."""
        at = self.programs[name].address + self.offset("bpf_prog", "aux")
        return self.word(at) + self.offset("bpf_prog_aux", member)


@pytest.fixture(scope="module", params=KERNELS)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        guest = exotic_guest(lab, stack, GuestConfig(request.param))
        guest.monitor.execute("stop")
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))


LIES: Final[dict[str, tuple[str, Callable[[Den], int], bytes]]] = {
    "nothing behind it": (
        "qvmi_kprobe",
        lambda den: den.programs["qvmi_kprobe"].address + den.offset("bpf_prog", "aux"),
        struct.pack("<Q", NOWHERE),
    ),
    "another id": (
        "qvmi_xdp",
        lambda den: den.aux("qvmi_xdp", "id"),
        struct.pack("<I", 4711),
    ),
    "maps without number": (
        "qvmi_filter",
        lambda den: den.aux("qvmi_filter", "used_map_cnt"),
        struct.pack("<I", HUGE),
    ),
    "maps nowhere": (
        "qvmi_filter",
        lambda den: den.aux("qvmi_filter", "used_maps"),
        struct.pack("<Q", NOWHERE),
    ),
    "functions without number": (
        "qvmi_calls",
        lambda den: den.aux("qvmi_calls", "func_cnt"),
        struct.pack("<I", HUGE),
    ),
    "a target nowhere": (
        "qvmi_fentry",
        lambda den: den.aux("qvmi_fentry", "attach_func_name"),
        struct.pack("<Q", NOWHERE),
    ),
    "nobody's": (
        "qvmi_cgroup",
        lambda den: den.aux("qvmi_cgroup", "user"),
        struct.pack("<Q", NOWHERE),
    ),
}


@pytest.mark.parametrize(("name", "place", "data"), LIES.values(), ids=LIES)
def test_a_program_that_lies_is_a_gap_and_hides_no_other(
    den: Den, name: str, place: Callable[[Den], int], data: bytes
) -> None:
    with den.ram.altered(den.pa(place(den)), data):
        programs, gaps = den.look()
    assert gaps == {den.programs[name].address}
    assert programs == {other: row for other, row in den.programs.items() if other != name}


def test_a_link_that_leads_nowhere_is_a_gap_and_hides_no_program(den: Den) -> None:
    (program,) = (row for row in den.programs.values() if row.type == "raw_tracepoint")
    link = den.link_of(program)
    place = link + den.offset("bpf_raw_tp_link", "btp")
    with den.ram.altered(den.pa(place), struct.pack("<Q", NOWHERE)):
        programs, gaps = den.look()
    assert gaps == {link}
    wanted = msgspec.structs.replace(program, attached=("raw_tracepoint",))
    assert programs == den.programs | {program.name: wanted}


@pytest.mark.parametrize("table", ["prog_idr", "link_idr"])
def test_a_table_that_leads_into_itself_is_a_gap(den: Den, table: str) -> None:
    slots = den.slots(table)
    root = struct.pack("<Q", slots - den.offset("xa_node", "slots") | 2)
    with den.ram.altered(den.pa(slots), root):
        programs, gaps = den.look()
    assert gaps
    assert programs.keys() <= den.programs.keys()
    assert den.look() == (den.programs, set())
