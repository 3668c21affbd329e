"""A kernel of an aarch64 guest that lies: the claims of x86-64 guests, with a guest of 48 bits.

The claims are the very same functions, with another guest.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import qvmi
from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.lab import Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import guest_ram
from tests.guests.test_hostile_views import (
    Den,
    test_a_dentry_that_is_nowhere_is_a_gap_and_hides_no_other_file,
    test_a_folder_below_itself_is_a_gap_of_what_is_in_it,
    test_a_map_without_a_beginning_is_a_gap,
    test_a_mapping_that_lies_is_a_gap_and_hides_no_other,
    test_a_mount_that_leads_nowhere_is_a_gap_and_hides_no_other,
    test_a_page_of_the_stack_that_is_gone_is_a_gap_of_that_process,
    test_a_record_of_the_log_that_lies_is_a_gap_and_hides_no_other,
    test_a_socket_that_lies_is_a_gap_and_hides_no_other,
    test_a_table_of_descriptors_larger_than_any_is_a_gap_of_its_process,
)

__all__ = [
    "test_a_dentry_that_is_nowhere_is_a_gap_and_hides_no_other_file",
    "test_a_folder_below_itself_is_a_gap_of_what_is_in_it",
    "test_a_map_without_a_beginning_is_a_gap",
    "test_a_mapping_that_lies_is_a_gap_and_hides_no_other",
    "test_a_mount_that_leads_nowhere_is_a_gap_and_hides_no_other",
    "test_a_page_of_the_stack_that_is_gone_is_a_gap_of_that_process",
    "test_a_record_of_the_log_that_lies_is_a_gap_and_hides_no_other",
    "test_a_socket_that_lies_is_a_gap_and_hides_no_other",
    "test_a_table_of_descriptors_larger_than_any_is_a_gap_of_its_process",
]


@pytest.fixture(scope="module")
def den(lab: Lab, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(aarch64("7.x-arm64", NARROW), paused=True)
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))
