"""Everything that is claimed of what is seen in an x86-64 guest, claimed of aarch64 guests too.

The claims are the very same functions, with other guests.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guests.aarch64_guests import EVERY
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool
from tests.guests.test_confinement import (
    test_a_process_in_a_box_has_a_pid_and_a_hostname_of_its_own,
    test_a_process_in_a_container_is_told_with_it,
    test_at_rest_every_process_has_credentials_of_its_own,
    test_cgroups_equal_proc,
    test_credentials_equal_proc,
    test_labels_equal_proc,
    test_namespaces_equal_proc,
    test_of_one_moment_they_are_what_is_seen_at_rest,
    test_rights_are_told_by_name_and_as_the_process_set_them,
    test_those_of_one_process_are_the_same_rows_as_among_all,
)
from tests.guests.test_kallsyms import (
    test_a_name_that_the_kernel_lacks_is_not_found,
    test_digest_equals_the_guests_own,
    test_finds_a_name_where_the_guest_has_it,
    test_finds_each_name_that_is_unique,
    test_the_nearest_symbol_is_the_one_an_address_lies_in,
    truth,
)
from tests.guests.test_module_symbols import (
    lines,
    test_a_type_of_a_module_refers_to_the_kernels_own,
    test_an_address_elsewhere_is_near_nothing,
    test_an_address_in_a_module_is_near_the_symbol_it_lies_in,
    test_each_module_has_as_many_as_the_guest_counts,
    test_equal_proc_kallsyms_to_the_letter,
    test_symbols_come_and_go_with_their_module,
    test_the_kernels_own_types_are_those_of_its_sysfs,
    test_types_are_those_of_the_guests_own_sysfs,
)
from tests.guests.test_modules import (
    test_a_module_is_seen_from_loading_to_unloading,
    test_each_row_lies_in_memory_that_the_kernel_maps,
    test_equals_proc_modules,
)
from tests.guests.test_processes import (
    test_a_hostile_name_is_its_very_bytes,
    test_equals_proc,
    test_every_state_that_can_be_held_is_seen,
    test_names_each_thread_as_it_named_itself,
    test_real_ids_are_shown_and_not_effective_ones,
    test_the_pid_namespace_knows_the_same_processes,
    test_threads_equal_proc,
    test_tree_equals_proc,
)

__all__ = [
    "lines",
    "test_a_hostile_name_is_its_very_bytes",
    "test_a_module_is_seen_from_loading_to_unloading",
    "test_a_name_that_the_kernel_lacks_is_not_found",
    "test_a_process_in_a_box_has_a_pid_and_a_hostname_of_its_own",
    "test_a_process_in_a_container_is_told_with_it",
    "test_a_type_of_a_module_refers_to_the_kernels_own",
    "test_an_address_elsewhere_is_near_nothing",
    "test_an_address_in_a_module_is_near_the_symbol_it_lies_in",
    "test_at_rest_every_process_has_credentials_of_its_own",
    "test_cgroups_equal_proc",
    "test_credentials_equal_proc",
    "test_digest_equals_the_guests_own",
    "test_each_module_has_as_many_as_the_guest_counts",
    "test_each_row_lies_in_memory_that_the_kernel_maps",
    "test_equal_proc_kallsyms_to_the_letter",
    "test_equals_proc",
    "test_equals_proc_modules",
    "test_every_state_that_can_be_held_is_seen",
    "test_finds_a_name_where_the_guest_has_it",
    "test_finds_each_name_that_is_unique",
    "test_labels_equal_proc",
    "test_names_each_thread_as_it_named_itself",
    "test_namespaces_equal_proc",
    "test_of_one_moment_they_are_what_is_seen_at_rest",
    "test_real_ids_are_shown_and_not_effective_ones",
    "test_rights_are_told_by_name_and_as_the_process_set_them",
    "test_symbols_come_and_go_with_their_module",
    "test_the_kernels_own_types_are_those_of_its_sysfs",
    "test_the_nearest_symbol_is_the_one_an_address_lies_in",
    "test_the_pid_namespace_knows_the_same_processes",
    "test_those_of_one_process_are_the_same_rows_as_among_all",
    "test_threads_equal_proc",
    "test_tree_equals_proc",
    "test_types_are_those_of_the_guests_own_sysfs",
    "truth",
]


@pytest.fixture(scope="module", params=EVERY, ids=lambda config: config.name)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)
