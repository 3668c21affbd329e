"""Tables of system calls as they were made, and one full of lies."""

import pytest

from qvmi.codepacks.detectors.system_calls import SystemCalls
from tests.guests.kernel_packs.call_table import WORD, CallTable
from tests.guests.kernel_packs.tampered_kernel import Tampered


@pytest.fixture
def table(kernel: Tampered) -> CallTable:
    return CallTable.of(kernel)


def test_a_kernel_as_it_was_made_has_no_finding(table: CallTable) -> None:
    pack = SystemCalls()
    assert table.kernel.look(pack) == []
    assert table.kernel.look(pack) == []
    listed = table.kernel.linux.system_calls()
    execve = listed.find(place=table.entry(table.numbers.execve))
    assert execve is not None
    assert (execve.target, execve.owner) == (table.handler("execve"), "kernel")
    assert len(listed) > 400


def test_a_table_full_of_lies_costs_a_finding_an_entry(table: CallTable) -> None:
    start = table.entry(0)
    size = 4096 - start % 4096
    with table.kernel.altered(start, b"\xa5" * size):
        found = table.kernel.look(SystemCalls())
    assert min(400, size // WORD) <= len(found) <= size // WORD
