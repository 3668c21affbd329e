"""An unknown kernel is understood in one of two ways, which agree, and each finding has its reason."""

from pathlib import Path

import pytest

import qvmi
from qvmi.errors import CorruptTable
from qvmi.semantics.linux.image.kallsyms import tables_by_form, tables_by_vmcoreinfo
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest
from tests.guests.x86_64_vcpus import x86_64_vcpu

ATTACHES = 20
FEW_SYMBOLS, FEW_MEMBERS = 16, 40
"""Of some 100,000 each; a list of processes asks for init_task and a dozen members."""


@pytest.mark.parametrize("guest", ["6.1", "6.12", "7.x"], indirect=True)
@asynchronous
async def test_search_finds_the_tables_vmcoreinfo_names(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        image = machine.guest.kernel.image
        searched = tables_by_form(machine.memory, image)
        assert searched == tables_by_vmcoreinfo(machine.memory, image)


@pytest.mark.parametrize("guest", ["5.10"], indirect=True)
@asynchronous
async def test_a_note_that_names_no_tables_says_so(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        with pytest.raises(CorruptTable, match="does not name kallsyms"):
            tables_by_vmcoreinfo(machine.memory, machine.guest.kernel.image)


@asynchronous
async def test_a_first_list_decodes_few_symbols(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        assert machine.guest.processes()
        profile = machine.guest.kernel.profile
    assert profile is not None
    assert 0 < len(profile.symbols) <= FEW_SYMBOLS
    assert 0 < len(profile.fields) <= FEW_MEMBERS


@asynchronous
async def test_every_finding_has_evidence(guest: Guest) -> None:
    truth = guest.kallsyms()
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        evidence = machine.guest.facts().evidence
        pages = x86_64_vcpu(machine.view.vcpus[0]).cr3 & ~0xFFF
    because = {item.source.partition(" at ")[0]: item.claim for item in evidence}
    assert f"image at {truth.addresses['_text']:#x}" in because["page tables"]
    assert f"page tables at {pages:#x}" in "".join(item.source for item in evidence)
    assert because["IDT gate 0"]
    assert because["kallsyms, found by: tables_by_form"] == f"{truth.count} symbols"
    assert guest.run("cat /proc/version").decode().strip() == because["linux_banner"]
    assert because["page_offset_base and page tables"]


@asynchronous
async def test_a_guest_is_understood_while_processes_come_and_go(guest: Guest) -> None:
    """The page tables that a vCPU has loaded may be gone a moment later, with their process."""
    guest.start_storm()
    images = []
    try:
        for _ in range(ATTACHES):
            async with qvmi.attach(guest.qmp, use_cache=False) as machine:
                assert machine.guest.processes()
                images.append(machine.guest.kernel.image)
    finally:
        guest.stop_storm()
    own = guest.kallsyms().addresses["init_top_pgt"]
    for image in images:
        assert image.root == image.pa + own - image.start


@asynchronous
async def test_looking_never_stops_the_guest(guest: Guest) -> None:
    guest.monitor.execute("query-status")
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        linux = machine.guest
        for look in (linux.facts, linux.processes, linux.process_ids, linux.threads, linux.modules):
            look()
        await machine.registers()
        await machine.facts()
        await machine.refresh()
    assert guest.monitor.running()
    assert not [event["event"] for event in guest.monitor.events]
