"""What is claimed of drgn's helpers over an x86-64 guest, of aarch64 guests.

The claims are the very same functions, with other guests.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool
from tests.guests.test_drgn_bridge import (
    _a_cache_of_its_own,
    test_a_dump_is_asked_by_the_same_code,
    test_a_dump_is_looked_at_in_the_same_way,
    test_a_program_of_a_pause_ends_with_it,
    test_a_script_has_its_arguments_and_the_helpers,
    test_clock_cpus_and_types_of_modules_are_there,
    test_code_is_run_on_the_live_guest,
    test_memory_that_is_not_there_is_a_fault_of_drgns,
    test_mounts_files_and_mappings_are_those_of_proc,
    test_nothing_is_stale,
    test_symbols_of_kernel_and_modules_are_found_both_ways,
    test_tasks_and_modules_are_those_that_the_guest_tells,
    test_the_log_is_the_guests_own,
    test_the_tasks_of_one_moment_are_those_of_the_native_view,
)

__all__ = [
    "_a_cache_of_its_own",
    "test_a_dump_is_asked_by_the_same_code",
    "test_a_dump_is_looked_at_in_the_same_way",
    "test_a_program_of_a_pause_ends_with_it",
    "test_a_script_has_its_arguments_and_the_helpers",
    "test_clock_cpus_and_types_of_modules_are_there",
    "test_code_is_run_on_the_live_guest",
    "test_memory_that_is_not_there_is_a_fault_of_drgns",
    "test_mounts_files_and_mappings_are_those_of_proc",
    "test_nothing_is_stale",
    "test_symbols_of_kernel_and_modules_are_found_both_ways",
    "test_tasks_and_modules_are_those_that_the_guest_tells",
    "test_the_log_is_the_guests_own",
    "test_the_tasks_of_one_moment_are_those_of_the_native_view",
]


@pytest.fixture(
    scope="module",
    params=[aarch64(), aarch64("7.x-arm64", NARROW)],
    ids=["6.12", "7.x, 48 bits"],
)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture
def one(guest: Guest) -> Guest:
    """This is what the command is tried on."""
    return guest
