"""Linux as the selected interface, over a guest made by hand."""

import pytest

from qvmi.errors import QvmiError, StaleView, SymbolNotFound, WalkFailed
from qvmi.semantics.guest_os import GuestOS
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.discovery import discover
from qvmi.view import Provenance, Taken, View
from tests.synthetic.guest import BUILD_ID, LINK_START, PAGE_OFFSET, ROOT, Guest, GuestOptions


def populated(options: GuestOptions | None = None, *, mapped: bool = True) -> Guest:
    guest = Guest(options, mapped=mapped)
    init = guest.kernel.add_process(1, b"init", uid=0)
    server = guest.kernel.add_process(40, b"server", parent=init, uid=33)
    guest.kernel.add_thread(server, 41, 40)
    guest.kernel.write_idr()
    guest.kernel.add_module(b"nf_tables", base=0xFFFF_FFFF_C000_0000, sizes=[0x1000] * 7)
    return guest


def linux(guest: Guest) -> LinuxGuest:
    view = guest.view()
    return LinuxGuest(view, discover(view))


def answers(guest: GuestOS) -> dict[str, list[object]]:
    return {
        "processes": [(row.pid, row.name, row.ppid) for row in guest.processes()],
        "process_ids": [(row.pid, row.name, row.ppid) for row in guest.process_ids()],
        "threads": [(row.pid, row.tgid) for row in guest.threads()],
        "modules": [row.name for row in guest.modules()],
    }


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("levels", [4, 5])
def test_every_question_is_answered(levels: int, *, mapped: bool) -> None:
    guest = populated(GuestOptions(levels=levels), mapped=mapped)
    assert answers(linux(guest)) == {
        "processes": [(1, "init", 0), (40, "server", 1)],
        "process_ids": [(1, "init", 0), (40, "server", 1)],
        "threads": [(1, 1), (40, 40), (41, 40)],
        "modules": ["nf_tables"],
    }


def test_the_facts_are_those_of_the_kernel() -> None:
    guest = populated(GuestOptions(levels=5, user_half=True))
    facts = linux(guest).facts()
    assert (facts.os, facts.release, facts.architecture) == ("linux", "6.1.0-synthetic", "x86_64")
    assert (facts.paging, facts.page_table_root, facts.page_table_isolation) == (
        "5-level",
        ROOT,
        True,
    )
    assert facts.kernel_base == LINK_START + guest.options.slide
    assert (facts.kernel_slide, facts.build_id) == (guest.options.slide, BUILD_ID)
    assert facts.banner.startswith("Linux version 6.1.0-synthetic")
    assert facts.uptime_s == 100.0
    assert facts.evidence


def test_a_listing_carries_the_views_label_and_its_own_time() -> None:
    guest = populated()
    view = View(
        (guest.registers,), guest.ram, Provenance(Taken.PAUSED, at=5.0, pause_s=0.25, epoch=3)
    )
    listing = LinuxGuest(view, discover(view)).processes()
    provenance = listing.provenance
    assert (provenance.taken, provenance.pause_s, provenance.epoch) == (Taken.PAUSED, 0.25, 3)
    assert provenance.at > 5.0
    assert provenance.retries == 0


def test_retries_are_counted_on_the_listing() -> None:
    guest = populated(mapped=False)
    inside = linux(guest)
    first, last = (row.address for row in inside.processes())

    def before_read(pa: int) -> None:
        if pa == guest.pa_of(last):
            guest.ram.before_read = None
            guest.kernel.delete(guest.kernel.tasks_link(first))

    guest.ram.before_read = before_read
    listing = inside.processes()
    assert listing.provenance.retries > 0
    assert [row.pid for row in listing] == [40]


def test_gaps_are_on_the_listing() -> None:
    guest = populated()
    task = guest.kernel.add_process(50)
    guest.kernel.set_u64(task, "real_cred", 0)
    listing = linux(guest).processes()
    assert [gap.address for gap in listing.gaps] == [task]
    assert [row.pid for row in listing] == [1, 40]


def test_the_memory_of_a_process_is_an_address_space_of_its_own() -> None:
    guest = populated()
    inside = linux(guest)
    server = inside.processes().items[1]
    mm = guest.kernel.allocate("mm_struct")
    guest.kernel.set_u64(server.address, "mm", mm)
    guest.kernel.u64(mm + guest.kernel.member("mm_struct", "pgd"), PAGE_OFFSET + ROOT)
    assert inside.user_space(server).root == ROOT


def test_a_process_without_memory_of_its_own_is_said_so() -> None:
    inside = linux(populated())
    with pytest.raises(WalkFailed, match="no memory of its own"):
        inside.user_space(inside.processes().items[0])


def test_another_kernel_in_its_place_is_not_answered_for() -> None:
    guest = populated()
    inside = linux(guest)
    guest.write_image(guest.rodata + 0x100, bytes(64))
    for question in ("facts", *QUESTIONS):
        with pytest.raises(StaleView):
            getattr(inside, question)()


QUESTIONS = ["processes", "process_ids", "threads", "modules"]


@pytest.mark.parametrize("question", ["facts", *QUESTIONS])
@pytest.mark.parametrize("mapped", [True, False])
def test_once_the_memory_is_gone_every_question_fails_as_ours(
    question: str, *, mapped: bool
) -> None:
    guest = populated(mapped=mapped)
    inside = linux(guest)
    getattr(inside, question)()
    guest.ram.size = 0
    guest.ram.mapped = False
    guest.ram.buffer.close()
    with pytest.raises(QvmiError):
        getattr(inside, question)()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("reads", range(1, 40, 3))
def test_memory_that_goes_during_a_walk_fails_as_ours_or_is_a_gap(
    question: str, reads: int
) -> None:
    guest = populated(mapped=False)
    inside = linux(guest)
    complete = len(getattr(inside, question)())
    left = reads

    def before_read(_: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            guest.ram.size = 0

    guest.ram.before_read = before_read
    try:
        listing = getattr(inside, question)()
    except QvmiError:
        return
    assert listing.gaps or len(listing) == complete


@pytest.mark.parametrize(
    ("question", "symbol"),
    [("processes", "init_task"), ("process_ids", "init_pid_ns"), ("modules", "modules")],
)
def test_a_kernel_that_lacks_a_symbol_is_said_so(question: str, symbol: str) -> None:
    guest = populated()
    inside = linux(guest)
    profile = inside.kernel.profile
    assert profile is not None
    inside.kernel.symbols.find(symbol)  # an answer given in this session is not asked again
    profile.symbols[symbol] = None
    with pytest.raises(SymbolNotFound, match=symbol):
        getattr(inside, question)()
