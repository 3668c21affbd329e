"""What depends on QEMU, once more on newer ones; ``scripts/prove`` runs all tests of guests on each of them.

Tests of other modules that are imported here are collected here too, with this module's QEMU.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import qvmi
from qvmi.errors import QmpBusy
from qvmi.machine.find import FoundMachine, SocketState, find_machines
from qvmi.qmp.command_line import Purpose, parse_command_line
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree
from tests.guests.bare_qemu import bare_qemu
from tests.guests.lab import (
    NEWER_QEMUS,
    QEMU_VARIABLE,
    Guest,
    GuestConfig,
    Lab,
    MissingPartError,
    Qemu,
    qemu_named,
)
from tests.guests.pool import GuestPool
from tests.guests.test_breakpoints import (  # noqa: F401 - collected here
    stormy,
    test_a_program_that_is_killed_at_a_hot_breakpoint_leaves_its_guest_running,
    test_each_fork_is_a_hit_with_the_thread_that_forks,
    test_hits_come_from_every_vcpu_and_name_tasks_that_existed,
    test_the_owners_own_stub_is_used_and_stays,
)
from tests.guests.test_capture import (  # noqa: F401 - collected here
    test_a_long_walk_sees_one_moment_too,
)
from tests.guests.test_configurations import BUILT
from tests.guests.test_dump import (  # noqa: F401 - collected here
    test_a_dump_holds_all_memory_and_the_guest_runs_on,
)
from tests.guests.test_gdbstub import (  # noqa: F401 - collected here
    test_a_client_killed_at_any_moment_leaves_a_stub_that_the_next_can_use,
    test_a_guest_that_its_owner_let_run_shifts_no_reply,
    test_aarch64_registers_are_those_of_the_human_monitor,
    test_leaves_running_what_ran_and_stopped_what_stood,
    test_memory_is_that_of_the_mapped_file,
    test_physical_addresses_are_turned_off_again,
    test_says_who_holds_the_stub_and_does_not_disturb_it,
    test_steps_one_instruction_of_one_vcpu,
    test_stops_at_a_breakpoint_each_time_and_steps_over_it,
    test_stops_at_an_access_to_watched_memory,
    test_writes_memory_and_registers,
)
from tests.guests.test_memory_map import (  # noqa: F401 - collected here
    test_a_byte_is_in_the_file_where_the_map_says,
    test_every_region_starts_where_qemu_has_its_host_memory,
    test_regions_and_backends_have_the_sizes_that_qemu_tells,
)
from tests.guests.test_pause import (  # noqa: F401 - collected here
    test_a_guest_that_its_owner_paused_stays_paused,
    test_a_program_that_is_killed_leaves_its_guest_running,
    test_somebody_elses_cont_within_the_block_is_told,
    test_within_the_block_the_guest_answers_for_the_pause,
)
from tests.guests.test_processes import (  # noqa: F401 - collected here
    test_equals_proc,
    test_threads_equal_proc,
)
from tests.guests.test_qmp_session import (  # noqa: F401 - collected here
    test_a_gdbstub_given_by_mistake_leaves_its_guest_paused_where_it_tells,
    test_a_gdbstub_given_by_mistake_leaves_its_guest_running,
    test_a_second_client_is_told_who_holds_the_socket,
    test_a_stopped_qemu_is_told_in_time,
    test_find_lists_a_running_qemu_and_whether_it_is_free,
)
from tests.guests.test_registers import (  # noqa: F401 - collected here
    test_every_vcpu_has_the_registers_that_the_gdbstub_tells,
)

PROGRAMS = ("qemu-system-x86_64", "qemu-system-aarch64")
TAKE_A_VALUE = {"-dtb", "-M"}
"""Options whose value stands in the help as the explanation of others does."""


@pytest.fixture(scope="module", params=NEWER_QEMUS, autouse=True)
def qemu(request: pytest.FixtureRequest) -> Iterator[Qemu]:
    """This is the QEMU of a newer suite, which all machines of a test run on."""
    try:
        found = qemu_named(request.param)
    except MissingPartError as missing:
        pytest.skip(str(missing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(QEMU_VARIABLE, request.param)
        yield found


@pytest.fixture(scope="module")
def lab(lab: Lab, qemu: Qemu) -> Lab:
    return replace(lab, qemu=qemu)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig())


def found(pid: int) -> FoundMachine:
    (one,) = [machine for machine in find_machines() if machine.process.pid == pid]
    return one


# ------------------------------------------------------------------------------------- the QEMU itself


def test_has_the_libraries_and_the_firmware_of_its_own_suite(qemu: Qemu) -> None:
    assert qemu.root is not None
    with bare_qemu("-device", "VGA") as machine:
        version = machine.monitor.execute("query-version")
        maps = Path(f"/proc/{machine.pid}/maps").read_text()
    assert "{major}.{minor}.{micro}".format(**version["qemu"]) == qemu.version().split()[0]
    assert version["qemu"]["major"] >= 10
    libraries = set(re.findall(r"(/\S+\.so[.\d]*)$", maps, re.MULTILINE))
    assert len(libraries) > 10
    assert [path for path in libraries if not path.startswith(str(qemu.root))] == []
    shown = subprocess.run(
        qemu.command("qemu-system-x86_64", "-L", "help"), capture_output=True, text=True, check=True
    )
    # The machine's folders, at the end of its list, are each shadowed by one of its own.
    folders = shown.stdout.split()
    own = {folder.removeprefix(str(qemu.root)) for folder in folders}
    assert own
    assert {folder for folder in folders if not folder.startswith(str(qemu.root))} <= own
    assert all(f"{qemu.root}{folder}" in folders for folder in own)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_option_without_a_value_takes_none(qemu: Qemu, program: str) -> None:
    helped = subprocess.run(
        qemu.command(program, "-help"), capture_output=True, text=True, check=True
    )
    lines = re.findall(r"^(-\S+(?: or -\S+)*)(?:\s{2,}.*|)$", helped.stdout, re.MULTILINE)
    flags = {flag for line in lines for flag in line.split(" or ")} - TAKE_A_VALUE
    assert len(flags) > 20
    qmp = ("-qmp", "unix:/q.sock,server")
    taken = [flag for flag in flags if not _purposes(flag, *qmp).count(Purpose.QMP)]
    assert taken == []


def _purposes(*arguments: str) -> list[Purpose]:
    return [socket.purpose for socket in parse_command_line(arguments).sockets]


@pytest.mark.parametrize("qemu", ["sid"], indirect=True)
@asynchronous
async def test_a_monitor_that_is_an_object_is_found_and_attached_to(
    qemu: Qemu,  # noqa: ARG001 - the one that has such objects
    tmp_path: Path,
) -> None:
    socket = tmp_path / "qmp"
    chardev = ("-chardev", f"socket,id=q,path={socket},server=on,wait=off")
    with bare_qemu(*chardev, "-object", "monitor-qmp,id=m,chardev=q") as machine:
        sockets = {str(one.address): one for one in found(machine.pid).sockets}
        assert (sockets[str(socket)].purpose, sockets[str(socket)].state) == (
            *(Purpose.QMP, SocketState.FREE),
        )
        async with qvmi.attach(str(socket), discover=False) as attached:
            assert (await attached.run_state()).running
            with pytest.raises(QmpBusy):
                async with qvmi.attach(str(socket), discover=False):
                    pass


# ------------------------------------------------------------------------------------------ its guests


@asynchronous
async def test_facts_name_the_qemu_and_the_kernel(guest: Guest, qemu: Qemu, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        facts = await machine.facts()
        release = machine.guest.facts().release
    assert facts.qemu_version == qemu.version().split()[0]
    assert release == guest.run("uname -r").decode().strip()


@pytest.mark.parametrize("name", ["6.1-pc-1cpu-4level-nokaslr-memfd", "6.1-4cpus-3GiB-pti-private"])
@asynchronous
async def test_processes_of_other_machines_equal_proc(
    guests: GuestPool, profiles: Path, proof_count: Callable[[int], None], name: str
) -> None:
    built = BUILT[name]
    guest = guests.restore(built.config)
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        proof_count(assert_processes_agree(guest, machine.guest.processes))
        assert [one.source for one in machine.memory_ladder if one.used] == [built.memory]
        assert (await machine.facts()).ram_size == built.config.memory_mib << 20
