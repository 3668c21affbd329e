"""A kernel that lies in credentials, namespaces and cgroups: what is true is listed, the lie is a gap.

What a rootkit does to credentials is no lie, and told.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from qvmi import Listing, Process
from qvmi.semantics.guest_os import Cgroup, Credentials, Namespaces
from qvmi.symbols.layout import address
from tests.guests.test_hostile_views import NOWHERE, Den, den
from tests.hostile.bounds import cpu_seconds

__all__ = ["den"]

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
MOST_SHARERS: Final = 100

Row = Credentials | Namespaces | Cgroup


@contextmanager
def _altered(den: Den, va: int, data: bytes) -> Iterator[None]:
    with den.ram.altered(den.pa(va), data), cpu_seconds(FEW_SECONDS):
        yield


def _word(value: int) -> bytes:
    return struct.pack("<Q", value)


def _rows_of_others(listing: Listing[Row], process: Process) -> list[Row]:
    return [row for row in listing if row.pid != process.pid]


def _assert_only_gap(
    den: Den, ask: Callable[[], Listing[Row]], victim: Process, va: int, lie: bytes
) -> None:
    """With the lie the victim alone is missing, and a gap."""
    before = ask()
    with _altered(den, va, lie):
        listing = ask()
    assert [gap.address for gap in listing.gaps] == [victim.address]
    assert list(listing) == _rows_of_others(before, victim)
    assert len(listing) < len(before)


def _cred(den: Den, process: Process, member: str) -> int:
    cred = den.word(process.address + den.offset("task_struct", "real_cred"))
    return cred + den.offset("cred", member)


# --------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize("member", ["group_info", "user_ns"])
@pytest.mark.parametrize("where", [0, NOWHERE])
def test_credentials_that_lead_nowhere_are_a_gap(den: Den, member: str, where: int) -> None:
    victim = den.process("user-1000")
    place = _cred(den, victim, member)
    _assert_only_gap(den, den.linux.credentials, victim, place, _word(where))


def test_more_groups_than_there_can_be_are_a_gap(den: Den) -> None:
    victim = den.process("many-groups")
    place = den.word(_cred(den, victim, "group_info")) + den.offset("group_info", "ngroups")
    _assert_only_gap(den, den.linux.credentials, victim, place, struct.pack("<I", 0x7FFFFFFF))


def test_a_label_that_leads_nowhere_leaves_the_rest_of_the_row(den: Den) -> None:
    victim = den.process("labelled")
    with _altered(den, _cred(den, victim, "security"), _word(NOWHERE)):
        listing = den.linux.credentials()
        (row,) = den.linux.credentials(victim)
    assert [gap.address for gap in listing.gaps] == [victim.address]
    assert row.label == ""
    assert row in set(listing)
    assert len(listing) == len(den.linux.processes())


def test_stolen_credentials_are_told_of_both_who_have_them(den: Den) -> None:
    thief, owner = den.process("user-1000"), den.process("init")
    before = {row.pid: row for row in den.linux.credentials()}
    stolen = _word(before[owner.pid].cred)
    place = thief.address + den.offset("task_struct", "real_cred")
    with _altered(den, place, stolen):
        after = {row.pid: row for row in den.linux.credentials()}
        (alone,) = den.linux.credentials(thief)
    assert (after[thief.pid].uid, after[thief.pid].effective) == (0, before[owner.pid].effective)
    assert after[thief.pid].cred == before[thief.pid].cred != after[thief.pid].real_cred
    sharing = {pid: row.shared_with for pid, row in after.items() if row.shared_with}
    assert sharing == {thief.pid: (owner.pid,), owner.pid: (thief.pid,)}
    assert alone == after[thief.pid]


def test_credentials_that_everybody_has_are_told_of_some_and_are_a_gap(den: Den) -> None:
    shared = den.word(den.process("init").address + den.offset("task_struct", "cred"))
    with ExitStack() as stack:
        processes = den.linux.processes().items
        for process in processes:
            for member in ("real_cred", "cred"):
                place = process.address + den.offset("task_struct", member)
                stack.enter_context(den.ram.altered(den.pa(place), _word(shared)))
        stack.enter_context(cpu_seconds(FEW_SECONDS))
        listing = den.linux.credentials()
    assert len(listing) == len(processes) > MOST_SHARERS
    assert [gap.address for gap in listing.gaps] == [shared]
    assert {len(row.shared_with) for row in listing} == {MOST_SHARERS}


# ----------------------------------------------------------------------------------------- namespaces


@pytest.mark.parametrize("member", ["nsproxy", "thread_pid"])
def test_namespaces_that_lead_nowhere_are_a_gap(den: Den, member: str) -> None:
    victim = den.process("box-inner")
    place = victim.address + den.offset("task_struct", member)
    _assert_only_gap(den, den.linux.namespaces, victim, place, _word(NOWHERE))


def test_a_pid_namespace_deeper_than_any_is_a_gap(den: Den) -> None:
    victim = den.process("box-inner")
    pid = den.word(victim.address + den.offset("task_struct", "thread_pid"))
    place = pid + den.offset("pid", "level")
    _assert_only_gap(den, den.linux.namespaces, victim, place, struct.pack("<I", 33))


# -------------------------------------------------------------------------------------------- cgroups


def _unified(den: Den, name: str) -> Cgroup:
    """This is the cgroup of a process in cgroup v2."""
    return next(row for row in den.linux.cgroups(den.process(name)) if row.hierarchy == 0)


def _assert_one_cgroup_missing(den: Den, victim: Cgroup, va: int, lie: int) -> None:
    """With the lie the row of one cgroup alone is missing, and a gap."""
    before = den.linux.cgroups()
    with _altered(den, va, _word(lie)):
        listing = den.linux.cgroups()
    assert [gap.address for gap in listing.gaps] == [den.process(victim.name).address]
    assert list(listing) == [row for row in before if row != victim]
    assert len(listing) == len(before) - 1


@pytest.mark.parametrize("member", ["name", "parent"])
def test_a_cgroup_that_leads_nowhere_is_a_gap_and_hides_no_other(den: Den, member: str) -> None:
    victim = _unified(den, "in-odd-cgroup")
    node = den.word(victim.address + den.offset("cgroup", "kn"))
    place = node + den.offset("kernfs_node", member, f"__{member}")
    _assert_one_cgroup_missing(den, victim, place, NOWHERE)


def test_a_cgroup_below_itself_is_a_gap_and_hides_no_other(den: Den) -> None:
    victim = _unified(den, "in-pod")
    node = den.word(victim.address + den.offset("cgroup", "kn"))
    place = node + den.offset("kernfs_node", "parent", "__parent")
    _assert_one_cgroup_missing(den, victim, place, node)


def test_a_list_of_cgroups_that_is_a_loop_is_a_gap(den: Den) -> None:
    victim = den.process("in-docker")
    css_set = den.word(victim.address + den.offset("task_struct", "cgroups"))
    first = den.word(css_set + den.offset("css_set", "cgrp_links"))
    _assert_only_gap(den, den.linux.cgroups, victim, first, _word(first))


def test_a_controller_without_a_name_hides_no_other_hierarchy(den: Den) -> None:
    before = den.linux.cgroups()
    inside = next(row for row in before if row.controllers == "pids")
    root = den.word(inside.address + den.offset("cgroup", "root"))
    mask = den.word(root + den.offset("cgroup_root", "subsys_mask")) & 0xFFFFFFFF
    place = address(den.linux.kernel.symbols, "cgroup_subsys") + 8 * (mask.bit_length() - 1)
    with _altered(den, place, _word(NOWHERE)):
        listing = den.linux.cgroups()
    assert list(listing) == [row for row in before if row.controllers != "pids"]
    assert len(listing.gaps) == len(before) - len(listing) > 0
