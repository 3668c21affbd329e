"""What is claimed of an x86-64 guest's files, sockets, mounts, mappings, words and log, of aarch64 guests.

The claims are the very same functions, with other guests.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import qvmi
from tests.asynchronous import asynchronous
from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool
from tests.guests.test_aarch64_dumps import views_of
from tests.guests.test_command_lines import (
    test_a_title_that_runs_into_the_environment_is_shown_as_proc_does,
    test_command_lines_equal_proc,
    test_environments_equal_proc,
    test_hostile_words_are_their_very_bytes,
)
from tests.guests.test_kernel_log import (
    test_equals_kmsg,
    test_what_could_disturb_an_output_is_its_very_bytes,
)
from tests.guests.test_mappings import (
    test_equal_proc_for_every_process as test_mappings_equal_proc_for_every_process,
)
from tests.guests.test_mappings import (
    test_every_kind_of_mapping_has_its_name,
    test_kernel_threads_and_zombies_have_none_and_that_is_no_gap,
    test_what_a_mapping_holds_can_be_read_there,
)
from tests.guests.test_mounts import (
    test_a_bind_one_above_another_and_each_propagation_are_told,
    test_a_namespace_bears_the_number_that_proc_shows,
    test_a_process_that_is_gone_sees_nothing,
    test_all_namespaces_are_listed_each_once,
    test_each_process_sees_what_its_mountinfo_says,
    test_paths_begin_at_the_root_of_who_sees_them,
)
from tests.guests.test_open_files import (
    test_equal_proc as test_open_files_equal_proc,
)
from tests.guests.test_open_files import (
    test_of_one_moment_is_what_is_seen_of_a_guest_at_rest,
    test_paths_lead_through_the_mounts_of_the_process,
    test_the_device_is_that_of_the_mount,
    test_what_has_no_path_is_named_by_its_kind,
)
from tests.guests.test_open_files import (
    test_those_of_one_process_are_the_same_rows as test_files_of_one_process_are_the_same_rows,
)
from tests.guests.test_sockets import (
    test_a_unix_socket_tells_its_peer,
    test_equal_proc_net_with_their_owners,
    test_those_of_another_network_namespace_are_told_apart,
)
from tests.guests.test_sockets import (
    test_those_of_one_process_are_the_same_rows as test_sockets_of_one_process_are_the_same_rows,
)

__all__ = [
    "test_a_bind_one_above_another_and_each_propagation_are_told",
    "test_a_namespace_bears_the_number_that_proc_shows",
    "test_a_process_that_is_gone_sees_nothing",
    "test_a_title_that_runs_into_the_environment_is_shown_as_proc_does",
    "test_a_unix_socket_tells_its_peer",
    "test_all_namespaces_are_listed_each_once",
    "test_command_lines_equal_proc",
    "test_each_process_sees_what_its_mountinfo_says",
    "test_environments_equal_proc",
    "test_equal_proc_net_with_their_owners",
    "test_equals_kmsg",
    "test_every_kind_of_mapping_has_its_name",
    "test_files_of_one_process_are_the_same_rows",
    "test_hostile_words_are_their_very_bytes",
    "test_kernel_threads_and_zombies_have_none_and_that_is_no_gap",
    "test_mappings_equal_proc_for_every_process",
    "test_of_one_moment_is_what_is_seen_of_a_guest_at_rest",
    "test_open_files_equal_proc",
    "test_paths_begin_at_the_root_of_who_sees_them",
    "test_paths_lead_through_the_mounts_of_the_process",
    "test_sockets_of_one_process_are_the_same_rows",
    "test_the_device_is_that_of_the_mount",
    "test_those_of_another_network_namespace_are_told_apart",
    "test_what_a_mapping_holds_can_be_read_there",
    "test_what_could_disturb_an_output_is_its_very_bytes",
    "test_what_has_no_path_is_named_by_its_kind",
]


@pytest.fixture(
    scope="module",
    params=[aarch64(cpu_flags=NARROW), aarch64("7.x-arm64")],
    ids=["6.12, 48 bits", "7.x"],
)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture(scope="module")
def still(lab: Lab) -> Iterator[Guest]:
    """This is a guest that stands still, with a gdbstub that nobody holds."""
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(aarch64(gdbstub=True))
        guest.monitor.execute("stop")
        yield guest


@pytest.mark.parametrize("source", ["QEMU's process memory", "gdbstub"])
@asynchronous
async def test_the_same_is_seen_over_memory_that_has_to_be_asked_for(
    still: Guest, profiles: Path, source: str
) -> None:
    gdb = str(still.gdb_socket) if source == "gdbstub" else None
    async with qvmi.attach(still.qmp, cache=profiles) as machine:
        direct = views_of(machine.guest)
        plugin = await machine.volatility("linux.pslist.PsList")
    async with qvmi.attach(still.qmp, cache=profiles, sources=[source], gdb=gdb) as machine:
        asked = await machine.query(views_of)
        asked_plugin = await machine.volatility("linux.pslist.PsList")
    for name, listing in asked.items():
        assert listing.items == direct[name].items, name
        assert listing.items, name
        assert not listing.gaps
    assert asked_plugin.items == plugin.items
    assert not asked_plugin.gaps
