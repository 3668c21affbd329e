"""gdb and raw debuggers over a gateway: what is granted works, nothing else does, and the guest runs on."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.gateways import (
    RawDebugger,
    RawQmp,
    gateway,
    gdb,
    gdb_arguments,
    wait_until,
)
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

QUIET_S: Final = 0.3
"""So long is waited for what must not come; a stop is told within milliseconds."""

# Each as gdb or the manual writes it: what changes something, lets run, stops or ends.
FORBIDDEN: Final = (
    *(b"c", b"s", b"C05", b"S05", b"c1000", b"vCont;c", b"vCont;s:p1.1;c:p1.-1"),
    *(
        b"M1000,4:00000000",
        b"X1000,0:",
        b"X1000,4:abcd",
        b"G" + b"0" * 1072,
        b"P10=0010000000000000",
    ),
    *(b"Z0,1000,1", b"Z1,1000,1", b"Z2,1000,4", b"Z3,1000,4", b"Z4,1000,4"),
    *(b"vRun;", b"R00", b"r", b"vAttach;2", b"vFile:open:2f6574632f706173737764,0,0"),
    *(b"Qqemu.PhyMemMode:2", b"Qqemu.sstep=0", b"QStartNoAckMode", b"!", b"bc", b"bs"),
    *(b"qRcmd,71756974", b"qRcmd," + b"pmemsave 0 4096 /tmp/x".hex().encode()),
)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture(scope="module")
def fork(guest: Guest) -> int:
    """This is where forks begin."""
    return int(guest.run("grep ' kernel_clone$' /proc/kallsyms").split()[0], 16)


@pytest.fixture
def stormy(guest: Guest) -> Iterator[Guest]:
    guest.start_storm()
    yield guest
    guest.stop_storm()


@pytest.fixture
def bare() -> Iterator[BareQemu]:
    with bare_qemu("-m", "64", "-smp", "2") as qemu:
        yield qemu


def forks(guest: Guest) -> int:
    (line,) = (one for one in guest.run("cat /proc/stat").splitlines() if b"processes" in one)
    return int(line.split()[1])


def saved(qemu: BareQemu) -> tuple[bytes, str]:
    """This is the memory and the registers of a machine that stands still, by its owner's monitor."""
    file = qemu.folder / "memory"
    qemu.monitor.execute("pmemsave", val=0, size=1 << 20, filename=str(file))
    return file.read_bytes(), qemu.monitor.human("info registers -a")


# ------------------------------------------------------------------------------------------- gdb


def test_gdb_shows_the_registers_that_the_monitor_tells(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        with gateway(guest.qmp) as gate:
            said = gdb(
                gate, "info threads", "p/x $rip", "p/x $rsp", "thread 2", "p/x $rip", "detach"
            )
            shown = [int(one, 16) for one in re.findall(r"\$\d = (0x[0-9a-f]+)", said)]
        told = guest.monitor.human("info registers -a")
        assert not guest.monitor.running()
    finally:
        guest.monitor.execute("cont")
    rip = [int(one, 16) for one in re.findall(r"RIP=([0-9a-f]+)", told)]
    rsp = [int(one, 16) for one in re.findall(r"RSP=([0-9a-f]+)", told)]
    assert shown == [rip[0], rsp[0], rip[1]]


def test_gdb_reads_the_guests_memory_and_the_guest_runs_on(guest: Guest) -> None:
    banner = int(guest.run("grep ' linux_banner$' /proc/kallsyms").split()[0], 16)
    version = guest.run("cat /proc/version").decode().strip()
    with gateway(guest.qmp, "--may-pause") as gate:
        said = gdb(gate, f"x/s {banner:#x}", "x/4x 0x10", "detach")
    assert version[:100] in said.replace('"...', "")
    assert "Cannot access memory at address 0x10" in said
    assert guest.monitor.running()


def test_gdb_hits_a_breakpoint_where_it_is_granted(stormy: Guest, fork: int) -> None:
    with gateway(stormy.qmp, "--may-break") as gate:
        said = gdb(gate, f"break *{fork:#x}", *["continue", "p/x $rip"] * 3, "detach")
    assert re.findall(r"\$\d = (0x[0-9a-f]+)", said) == [hex(fork)] * 3
    assert stormy.monitor.running()
    before = forks(stormy)
    wait_until(lambda: forks(stormy) > before, "nothing forks any more")


def test_gdb_is_refused_what_is_not_granted(guest: Guest, fork: int) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        said = gdb(
            gate,
            "set $rax = 5",
            f"set {{char}}{fork:#x} = 0",
            "monitor quit",
            f"break *{fork:#x}",
            "continue",
            "detach",
        )
        refused = " ".join(text for text in gate.audit() if text.startswith("refused"))
    assert "Could not write register" in said
    assert f"Cannot access memory at address {fork:#x}" in said
    assert "not granted: QEMU's monitor" in said
    assert "Cannot insert breakpoint" in said
    assert refused.count("needs grant 'write'") >= 2
    assert "needs grant 'breakpoint'" in refused
    assert guest.monitor.running()


def test_gdb_writes_where_it_is_granted_and_the_log_tells_old_and_new(bare: BareQemu) -> None:
    with gateway(bare.qmp, "--may-write") as gate:
        said = gdb(
            gate, "set $rbx = 0x1234", "p/x $rbx", "set {int}0x500 = 0x41424344", "x/x 0x500"
        )
        log = gate.audit()
    assert "= 0x1234" in said
    assert "0x41424344" in said
    assert any("at vCPU 0's 0x500" in text and "becomes 44434241" in text for text in log)
    assert bare.monitor.human("xp /1xw 0x500").split()[-1] == "0x41424344"
    assert bare.monitor.running()


def test_gdb_gives_up_with_the_reason_where_the_guest_may_not_be_stopped(bare: BareQemu) -> None:
    with gateway(bare.qmp) as gate:
        said = gdb(gate, "p $rip")
        assert "stop the guest for a debugger: not granted (needs grant 'pause')" in said
        assert sum("needs grant 'pause'" in text for text in gate.audit()) == 1
        with RawDebugger.to(gate.gdb) as client:
            assert b"needs grant 'pause'" in client.ask(b"?")
            assert client.hung_up()
        bare.monitor.execute("stop")
        assert re.search(r"\$1 = .*0x[0-9a-f]+", gdb(gate, "p $rip"))
        bare.monitor.execute("cont")
    assert bare.monitor.running()


@pytest.mark.parametrize("last", ["quit", "kill", "detach"])
def test_the_guest_runs_on_however_gdb_ends(stormy: Guest, fork: int, last: str) -> None:
    with gateway(stormy.qmp, "--may-break") as gate:
        assert "Breakpoint 1" in gdb(gate, f"break *{fork:#x}", "continue", last)
        wait_until(stormy.monitor.running, "the guest does not run")
        before = forks(stormy)
        wait_until(lambda: forks(stormy) > before, "nothing forks any more")


def test_the_guest_runs_on_when_gdb_is_killed_at_a_breakpoint(stormy: Guest, fork: int) -> None:
    with gateway(stormy.qmp, "--may-break") as gate:
        command = gdb_arguments(gate, f"break *{fork:#x}", "continue", "echo hit\\n")
        command = tuple(word for word in command if word != "-batch")  # it waits for more
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdout
            for line in running.stdout:
                if line.startswith(b"hit"):
                    break
            assert not stormy.monitor.running()
            running.kill()
        wait_until(stormy.monitor.running, "the guest does not run")
        before = forks(stormy)
        wait_until(lambda: forks(stormy) > before, "nothing forks any more")


def test_gdb_and_another_debugger_look_at_the_same_time(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        with RawDebugger.to(gate.gdb) as other:
            assert other.ask(b"?") == b"T05thread:1;"
            assert other.ask(b"Hg2") == b"OK"
            second = other.ask(b"g")
            said = gdb(gate, "thread 1", "p/x $rip", "detach")
            assert re.search(r"= 0x[0-9a-f]+", said)
            assert not guest.monitor.running()
            assert other.ask(b"g") == second
        wait_until(guest.monitor.running, "the guest does not run")


# --------------------------------------------------------------------------------- who stops, who runs


def test_who_only_connects_or_says_half_a_packet_stops_nothing(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-break") as gate:
        for half in (b"", b"+", b"$", b"$m0,", b"$?#3", b"+$qSupported#37"):
            with RawDebugger.to(gate.gdb) as client:
                client.send(half)
        assert not any("stops the guest" in text for text in gate.audit())
        assert guest.monitor.running()


def test_a_half_packet_behind_a_question_leaves_a_running_guest(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        with RawDebugger.to(gate.gdb) as client:
            assert client.ask(b"?").startswith(b"T05")
            client.send(b"$mffff")
            assert not guest.monitor.running()
        wait_until(guest.monitor.running, "the guest does not run")


def test_one_debugger_does_not_let_a_guest_run_that_another_holds(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate, RawDebugger.to(gate.gdb) as second:
        with RawDebugger.to(gate.gdb) as first:
            assert first.ask(b"?").startswith(b"T05")
            assert second.ask(b"?").startswith(b"T05")
            second.say(b"c")
            assert second.says_nothing(QUIET_S)
            assert not guest.monitor.running()
            second.send(b"\x03")
            assert second.packet().startswith(b"T02")
            second.say(b"vCont;c")
        wait_until(guest.monitor.running, "the guest does not run")
        second.send(b"\x03")
        assert second.packet().startswith(b"T02")
        assert not guest.monitor.running()


def test_a_breakpoint_stops_the_guest_for_its_owner_alone(stormy: Guest, fork: int) -> None:
    with gateway(stormy.qmp, "--may-break") as gate, RawDebugger.to(gate.gdb) as waiting:
        waiting.ask(b"?")
        with RawDebugger.to(gate.gdb) as owner:
            owner.ask(b"?")
            assert owner.ask(b"Z0,%x,1" % fork) == b"OK"
            waiting.say(b"c")
            owner.say(b"c")
            assert owner.packet().startswith(b"T05")
            assert waiting.says_nothing(QUIET_S)
            assert not stormy.monitor.running()
        # Its breakpoint went with it.
        wait_until(stormy.monitor.running, "the guest does not run")
        assert waiting.says_nothing(QUIET_S)
        before = forks(stormy)
        wait_until(lambda: forks(stormy) > before, "nothing forks any more")


def test_a_breakpoint_of_two_debuggers_stays_when_one_of_them_goes(
    stormy: Guest, fork: int
) -> None:
    with gateway(stormy.qmp, "--may-break") as gate, RawDebugger.to(gate.gdb) as stays:
        stays.ask(b"?")
        assert stays.ask(b"Z0,%x,1" % fork) == b"OK"
        with RawDebugger.to(gate.gdb) as goes:
            goes.ask(b"?")
            assert goes.ask(b"Z0,%x,1" % fork) == b"OK"
            assert goes.ask(b"z0,%x,1" % fork) == b"OK"
        stays.say(b"c")
        assert stays.packet().startswith(b"T05")
        assert stays.ask(b"z0,%x,1" % fork) == b"OK"
        stays.say(b"s")
        assert stays.packet().startswith(b"T05")


def test_a_client_over_qmp_and_a_debugger_hold_the_guest_together(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate, RawQmp.to(gate.qmp) as client:
        client.negotiated()
        with RawDebugger.to(gate.gdb) as debugger:
            debugger.ask(b"?")
            debugger.say(b"c")
            wait_until(guest.monitor.running, "the guest does not run")
            assert client.execute("stop") == {"return": {}}
            assert not guest.monitor.running()
            assert debugger.says_nothing(QUIET_S)
            assert client.execute("cont") == {"return": {}}
            wait_until(guest.monitor.running, "the guest does not run")
            client.execute("stop")
        assert not guest.monitor.running()
    wait_until(guest.monitor.running, "the guest does not run")


def test_a_guest_that_its_owner_stops_meanwhile_stays_so(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate, RawDebugger.to(gate.gdb) as debugger:
        debugger.ask(b"?")
        debugger.say(b"c")
        wait_until(guest.monitor.running, "the guest does not run")
        guest.monitor.execute("stop")
        assert debugger.packet().startswith(b"T02")
        assert debugger.ask(b"c") == b"E01"
        assert debugger.ask(b"D") == b"OK"
    assert not guest.monitor.running()
    guest.monitor.execute("cont")


def test_a_guest_that_its_owner_lets_run_meanwhile_runs_on(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-pause") as gate:
        for next_one in (b"c", b"g", b"D"):
            with RawDebugger.to(gate.gdb) as debugger:
                debugger.ask(b"?")
                guest.monitor.execute("cont")
                wait_until(guest.monitor.running, "the guest does not run")
                debugger.say(next_one)
                if next_one == b"c":
                    assert debugger.says_nothing(QUIET_S)
                    debugger.send(b"\x03")
                    assert debugger.packet().startswith(b"T02")
                else:
                    assert debugger.packet() in {b"E16", b"OK"}
            wait_until(guest.monitor.running, "the guest does not run")


# ------------------------------------------------------------------------------------ what is refused


def try_everything(client: RawDebugger) -> None:
    """This says every forbidden packet, none of which is answered as if it were done."""
    for body in FORBIDDEN:
        answer = client.ask(body)
        if body.startswith(b"qRcmd"):
            assert b"not granted" in bytes.fromhex(answer[1:].decode())
            assert client.packet() == b"OK"
        else:
            assert answer in {b"", b"E01", b"E22"}, body
    client.send(b"\x03")
    assert client.ask(b"vNobodyKnows") == b""


@pytest.mark.parametrize("held", [True, False], ids=["paused", "running"])
def test_every_packet_that_changes_anything_is_refused(
    bare: BareQemu, proof_count: Callable[[int], None], *, held: bool
) -> None:
    """One may look at a machine that its owner has stopped, and at none that runs."""
    if held:
        bare.monitor.execute("stop")
    before = saved(bare) if held else None
    bare.monitor.events.clear()
    with gateway(bare.qmp) as gate, RawDebugger.to(gate.gdb) as client:
        assert client.ask(b"qC") == (b"QC1" if held else b"E01")
        try_everything(client)
        client.say(b"k")
        assert client.hung_up()
        with RawDebugger.to(gate.gdb) as killer:
            assert [killer.ask(body) for body in (b"vKill;1", b"D;1", b"D")] == [b"OK"] * 3
        refused = sum(text.startswith("refused") for text in gate.audit())
    assert refused >= len(FORBIDDEN) // 2
    assert bare.monitor.running() != held
    assert not bare.monitor.events
    assert before == (saved(bare) if held else None)
    proof_count(len(FORBIDDEN))


def test_the_kill_packets_leave_a_running_machine(bare: BareQemu) -> None:
    with gateway(bare.qmp, "--may-write", "--may-break") as gate:
        for last in (b"k", b"vKill;1", b"D", b"D;1"):
            with RawDebugger.to(gate.gdb) as client:
                client.ask(b"?")
                client.say(last)
                if last != b"k":
                    assert client.packet() == b"OK"
                wait_until(bare.monitor.running, "the machine does not run")


def test_a_question_why_the_guest_stands_still_leaves_breakpoints_alone(
    stormy: Guest, fork: int
) -> None:
    with gateway(stormy.qmp, "--may-break") as gate, RawDebugger.to(gate.gdb) as client:
        client.ask(b"?")
        assert client.ask(b"Z0,%x,1" % fork) == b"OK"
        assert client.ask(b"?").startswith(b"T05")
        client.say(b"c")
        assert client.packet().startswith(b"T05")


def test_threads_are_named_as_each_debugger_knows_them(bare: BareQemu) -> None:
    with gateway(bare.qmp, "--may-pause") as gate, RawDebugger.to(gate.gdb) as plain:
        assert b"multiprocess+" not in plain.ask(b"qSupported:vContSupported+")
        assert plain.ask(b"?") == b"T05thread:1;"
        assert plain.ask(b"qC") == b"QC1"
        assert (plain.ask(b"qfThreadInfo"), plain.ask(b"qsThreadInfo")) == (b"m1,2", b"l")
        assert plain.ask(b"Hg3") == b"E22"
        with RawDebugger.to(gate.gdb) as other:
            assert b"multiprocess+" in other.ask(b"qSupported:multiprocess+")
            assert other.ask(b"?") == b"T05thread:p1.1;"
            assert other.ask(b"qfThreadInfo") == b"mp1.1,p1.2"
            assert other.ask(b"D;1") == b"OK"
        assert plain.ask(b"qC") == b"QC1"


def test_a_vcpu_that_is_not_there_is_neither_chosen_nor_stepped(bare: BareQemu) -> None:
    with (
        gateway(bare.qmp, "--may-pause", "--may-write") as gate,
        RawDebugger.to(gate.gdb) as client,
    ):
        client.ask(b"qSupported:multiprocess+")
        client.ask(b"?")
        for packet in (b"vCont;s:p1.63", b"vCont;s:p5.1;c", b"Hgp5.1", b"Hgp1.63", b"Tp5.1"):
            assert client.ask(packet) == b"E22", packet
        assert client.ask(b"qC") == b"QCp1.1"
        assert client.ask(b"vCont;s:p1.1;c").startswith(b"T05")
        assert client.ask(b"D;1") == b"OK"
        wait_until(bare.monitor.running, "the machine does not run")


def test_no_device_is_read_by_either_gateway(bare: BareQemu) -> None:
    """The local APIC's registers are at 0xfee00000; no page tables are on here."""
    with gateway(bare.qmp, "--may-write") as gate:
        with RawDebugger.to(gate.gdb) as debugger:
            debugger.ask(b"?")
            assert debugger.ask(b"mfee00020,4") == b"E14"
            assert debugger.ask(b"Mfee00020,4:00000000") == b"E14"
            assert debugger.ask(b"m3fffffe,4") == b"E14"
            assert len(debugger.ask(b"m3fffffc,4")) == 8
        with RawQmp.to(gate.qmp) as client:
            client.negotiated()
            assert "no memory" in client.human("xp /1xw 0xfee00020")["error"]["desc"]
            assert "no memory" in client.human("xp /16xb 0x3fffff8")["error"]["desc"]
            assert "return" in client.human("xp /8xb 0x3fffff8")


def test_only_the_ranges_of_a_policy_are_read(bare: BareQemu, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "version = 1\n[codepacks.gateway]\npause = true\nread-registers = true\n"
        'read-memory = { physical = ["0x1000+4K"] }\n'
    )
    with gateway(bare.qmp, "--policy", str(policy)) as gate:
        with RawDebugger.to(gate.gdb) as debugger:
            debugger.ask(b"?")
            assert debugger.ask(b"m1000,1000") == b"E22"  # longer than a packet
            assert len(debugger.ask(b"m1ff8,8")) == 16
            assert debugger.ask(b"m1ff9,8") == b"E01"
            assert debugger.ask(b"mfff,1") == b"E01"
        with RawQmp.to(gate.qmp) as client:
            client.negotiated()
            assert "return" in client.human("xp /512xg 0x1000")
            assert "outside of its ranges" in client.human("xp /1xb 0x2000")["error"]["desc"]
            assert "outside of its ranges" in client.execute("query-memdev")["error"]["desc"]


def test_what_no_debugger_says_ends_its_visit_and_nothing_else(bare: BareQemu) -> None:
    noise = (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"$" + b"m" * 9000, b"$$?#3f", b"-", b"#01")
    with gateway(bare.qmp, "--may-pause") as gate, RawDebugger.to(gate.gdb) as other:
        other.ask(b"?")
        for data in noise:
            with RawDebugger.to(gate.gdb) as client:
                client.ask(b"?")
                client.send(data)
                assert client.hung_up()
        assert other.ask(b"qC") == b"QC1"
        assert other.ask(b"D") == b"OK"
        wait_until(bare.monitor.running, "the machine does not run")
