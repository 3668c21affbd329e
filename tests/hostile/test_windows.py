"""A Windows whose memory is wrong in places: an answer, gaps, or an error of ours."""

import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.errors import QvmiError
from qvmi.semantics.selection import select_windows
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.windows import BASE, POOL, WindowsMemory, write_isf

FEW_SECONDS = 30
places = st.sampled_from(
    [
        *range(BASE, BASE + 0x200, 4),
        *range(BASE + 0x3000, BASE + 0x3180, 4),
        *range(BASE + 0x2_0000, BASE + 0x2_0110, 8),
        *range(POOL, POOL + 0x500, 8),
    ]
)
words = st.one_of(
    st.sampled_from([0, 1, 0xFFFF_FFFF, (1 << 64) - 1, 1 << 47, 1 << 63, BASE, POOL]),
    st.integers(POOL, POOL + 0x500),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=100, deadline=None)
@given(wrong=st.lists(st.tuples(places, words), min_size=1, max_size=6))
def test_wrong_words_anywhere_are_answers_gaps_or_errors_of_ours(
    wrong: list[tuple[int, int]],
) -> None:
    memory = WindowsMemory()
    for pid in (4, 8, 12):
        memory.add_process(pid, b"p%d" % pid, parent=4)
    memory.add_module("ntoskrnl.exe", BASE, 0x4_0000)
    for place, word in wrong:
        memory.write(place, word.to_bytes(8, "little"))
    with tempfile.TemporaryDirectory() as folder, cpu_seconds(FEW_SECONDS):
        isf = write_isf(Path(folder) / "x.json")
        with suppress(QvmiError):
            guest = select_windows(memory.view(), isf)
            for question in (guest.facts, guest.processes, guest.modules):
                with suppress(QvmiError):
                    question()
