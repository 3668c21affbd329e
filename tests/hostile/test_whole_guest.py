"""A whole guest whose memory is wrong in places, from its page tables to its tasks."""

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.errors import QvmiError, UnknownGuest
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.discovery import discover
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.guest import IMAGE_PA, MIB, NOTE_PA, PAGE_OFFSET, ROOT, Guest, GuestOptions
from tests.synthetic.kallsyms import Order

MOST_GAPS = 3000
ORDERS: list[Order] = ["old", "new", "place-relative"]

# Where a wrong word hurts, with how much of it there is.
REGIONS = {
    "root": (ROOT, 4096),
    "page tables": (ROOT + 0x2000, 0x6000),
    "note": (NOTE_PA, 1024),
    "banner": (IMAGE_PA + 2 * MIB + 0x100, 64),
    "types": (IMAGE_PA + 2 * MIB + 0x1000, 0x800),
    "tables": (IMAGE_PA + 3 * MIB, 0x3_0000),
    "variables": (IMAGE_PA + 4 * MIB + 0x1000, 0x800),
    "structures": (IMAGE_PA + 4 * MIB + 0x1800, 0x3000),
}

wrong = st.tuples(
    st.sampled_from(list(REGIONS)),
    st.floats(0, 1, exclude_max=True),
    st.one_of(
        st.sampled_from(
            [0, 1, 2, 0xFF, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1, 1 << 63, 0xDEAD_0000_0000_0122]
        ),
        st.sampled_from([ROOT | 0x63, ROOT | 0xE3, IMAGE_PA | 0xE3]),
        st.integers(0, 0x5000).map(lambda offset: PAGE_OFFSET + IMAGE_PA + 4 * MIB + offset),
        st.integers(0, (1 << 64) - 1),
    ),
    st.booleans(),
)


def guest_with(order: Order, levels: int) -> Guest:
    guest = Guest(GuestOptions(order=order, levels=levels))
    init = guest.kernel.add_process(1, b"init")
    for pid in (2, 70, 5000):
        guest.kernel.add_process(pid, b"p", parent=init)
    leader = guest.kernel.add_process(71, b"threads")
    guest.kernel.add_thread(leader, 72, 71)
    guest.kernel.write_idr()
    for name in (b"one", b"two"):
        guest.kernel.add_module(name, base=0xFFFF_FFFF_C000_0000, sizes=[0x1000] * 7)
    return guest


def ask_everything(inside: LinuxGuest) -> None:
    """All questions, each of which may fail as documented; none may have gaps without end."""
    questions = (
        *(inside.processes, inside.process_ids, inside.threads, inside.modules),
        *(inside.mounts, inside.open_files, inside.mappings, inside.command_lines, inside.log),
    )
    for question in questions:
        with suppress(QvmiError):
            assert len(question().gaps) < MOST_GAPS
    with suppress(QvmiError):
        inside.facts()
    with suppress(QvmiError):
        for process in inside.processes():
            with suppress(QvmiError):
                inside.user_space(process)
            with suppress(QvmiError):
                assert len(inside.mappings(process).gaps) < MOST_GAPS
            with suppress(QvmiError):
                assert len(inside.environment(process).gaps) < MOST_GAPS
    with suppress(QvmiError):
        inside.nearest(inside.kernel.image.start)


@settings(max_examples=150)
@given(
    order=st.sampled_from(ORDERS),
    levels=st.sampled_from([4, 5]),
    words=st.lists(wrong, min_size=1, max_size=6),
    late=st.booleans(),
)
def test_wrong_words_anywhere_are_answers_gaps_or_errors_of_ours(
    order: Order, levels: int, words: list[tuple[str, float, int, bool]], *, late: bool
) -> None:
    guest = guest_with(order, levels)
    inside: LinuxGuest | None = None
    with cpu_seconds(60), suppress(UnknownGuest):
        if late:  # the memory goes wrong after the guest was understood
            inside = LinuxGuest(guest.view(), discover(guest.view()))
        for region, place, word, half in words:
            start, size = REGIONS[region]
            at = start + (int(place * size) & ~3)
            if half:
                guest.ram.write_u32(at, word & 0xFFFF_FFFF)
            else:
                guest.ram.write_u64(at, word)
        if inside is None:
            inside = LinuxGuest(guest.view(), discover(guest.view()))
        ask_everything(inside)
