"""Pages of the guest's that this process has mapped, as the kernel counts them."""

import re
from pathlib import Path

from qvmi.addr import Pa, PaRange
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.memory.resident import let_go
from qvmi.testing import FakeMemory

PAGE = 4096
PAGES = 512


def resident_kib(path: Path) -> int:
    """What proc_pid_smaps(5) says of the mappings of a file."""
    smaps = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(rf"{path}\n(?:.*\n){{1,4}}?Rss: +(\d+) kB", smaps)))


def test_pages_that_were_touched_count_no_more_and_are_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"".join(bytes([number % 251]) * PAGE for number in range(PAGES)))
    memory = MappedRam([RamFile(PaRange(Pa(0), Pa(PAGES * PAGE)), path, 0)])
    read = [memory.read(Pa(number * PAGE), 1) for number in range(PAGES)]
    assert resident_kib(path) == PAGES * PAGE // 1024
    let_go(memory)
    assert resident_kib(path) == 0
    assert [memory.read(Pa(number * PAGE), 1) for number in range(PAGES)] == read


def test_memory_of_this_process_is_what_it_was() -> None:
    memory = FakeMemory({Pa(0): b"qvmi" * PAGE}, mapped=True)
    assert memory.windows
    let_go(memory)
    assert memory.read(Pa(4 * PAGE - 4), 4) == b"qvmi"


def test_memory_that_is_closed_meanwhile_is_let_alone() -> None:
    memory = FakeMemory({Pa(0): b"qvmi"}, mapped=True)
    memory.windows[0].buffer.close()
    let_go(memory)
    assert memory.windows[0].buffer.closed
