"""A bus network is what its level says, serves its service VMs, and is gone with its owner, whoever that is.

The oracle is iproute2, nft and /proc, looked at from outside.
"""

import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.guests.lab import Lab
from tests.guests.pool import GuestPool
from tests.isolation.bench import until
from tests.isolation.held_process import ROOT, held, line_of
from tests.isolation.namespaces import USER_BRIDGE, Inside, stand_in_host
from tests.isolation.site import bus_site, lab_within, owner
from tests.isolation.user_vm import MQTT_PORT, Attempts, network_guest
from tests.unit.bus.processes import ended

pytestmark = pytest.mark.timeout(600)  # guests share two cores with whatever else runs

WAYS: Final = ("ROOTLESS", "ROOT", "GUESTFWD", "HOST_BRIDGE")
IN_NAMESPACE: Final = ("ROOTLESS", "ROOT")
END_S: Final = 60.0
PATIENT_MS: Final = 30_000
QEMU: Final = ("/usr/bin/qemu-system-x86_64", "-nodefaults", "-display", "none", "-S")


@pytest.fixture
def host() -> Iterator[Inside]:
    with stand_in_host() as host:
        yield host


def network_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def processes_in(network: str) -> set[int]:
    """These are the processes that are in a network namespace."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str((folder / "ns" / "net").readlink()) == network:
                found.add(int(folder.name))
        except OSError:
            continue  # it ended
    return found


def state_of(host: Inside) -> tuple[set[str], str]:
    return host.links(), host.run("nft", "list", "ruleset")


# ------------------------------------------------------------------------------------ what it is


@pytest.mark.parametrize("way", IN_NAMESPACE)
def test_a_network_of_its_own_has_a_bridge_taps_and_nothing_else(host: Inside, way: str) -> None:
    before = state_of(host)
    with owner(host, way, "one") as (_, told):
        bus = Inside(told["broker"])
        assert network_of(told["broker"]) != network_of(host.pid)
        assert bus.links() == {"lo", "qvmi0", "tap0", "tap1"}
        assert [row["dst"] for row in bus.rows("-4", "route", "show")] == ["10.77.0.0/24"]
        assert bus.rows("-6", "address", "show") == []
        assert bus.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
        assert state_of(host) == before


@pytest.mark.parametrize("way", [*IN_NAMESPACE, "HOST_BRIDGE"])
def test_ports_are_isolated_locked_and_learn_nothing(host: Inside, way: str) -> None:
    with owner(host, way, "one") as (_, told):
        rows = Inside(told["broker"]).rows("link", "show", "master", told["bridge"])
        assert len(rows) == 2
        for row in rows:
            port = row["linkinfo"]["info_slave_data"]
            assert (port["isolated"], port["locked"]) == (True, True)
            flags = ("learning", "flood", "mcast_flood", "bcast_flood")
            assert {flag: port[flag] for flag in flags} == dict.fromkeys(flags, False)


@pytest.mark.parametrize("way", WAYS)
def test_the_broker_listens_at_one_address_and_in_a_private_folder(host: Inside, way: str) -> None:
    with owner(host, way, "one") as (_, told):
        lines = Inside(told["broker"]).run("ss", "-Htulnp").splitlines()
        mine = [line.split()[4] for line in lines if f"pid={told['broker']}," in line]
        assert mine == ([] if way == "GUESTFWD" else [f"10.77.0.1:{MQTT_PORT}"])
        folder = Path(told["socket"]).parent
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_careless_hosts_forwarding_is_not_inherited(host: Inside) -> None:
    assert host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    with owner(host, "ROOT", "one") as (_, told):
        bus = Inside(told["broker"])
        for name in ("ip_forward", "conf/all/forwarding", "conf/qvmi0/forwarding"):
            assert bus.run("cat", f"/proc/sys/net/ipv4/{name}").strip() == "0"


def test_rootless_the_broker_has_no_rights_over_the_host(host: Inside) -> None:
    with owner(host, "ROOTLESS", "one") as (_, told):
        user = Path(f"/proc/{told['broker']}/ns/user").readlink()
        assert user != Path(f"/proc/{host.pid}/ns/user").readlink()


def test_the_bridge_on_the_host_avoids_addresses_that_are_taken(host: Inside) -> None:
    host.run("ip", "address", "add", "10.77.0.7/23", "dev", USER_BRIDGE)
    with owner(host, "HOST_BRIDGE", "one") as (_, told):
        assert told["seats"][0]["broker"] == "10.77.2.1"


def test_two_instances_on_one_host_do_not_meet(host: Inside) -> None:
    with (
        owner(host, "HOST_BRIDGE", "one") as (_, one),
        owner(host, "HOST_BRIDGE", "two") as (_, two),
    ):
        assert one["bridge"] != two["bridge"]
        assert one["seats"][0]["broker"] != two["seats"][0]["broker"]
        assert {one["bridge"], two["bridge"]} < host.links()


@contextmanager
def bridges(host: Inside, *arguments: str) -> Iterator[list[str]]:
    """This runs `tests.isolation.host_bridges` in a stand-in host, and is what it tells."""
    command = (*host.enter, sys.executable, "-m", "tests.isolation.host_bridges", *arguments)
    with held(*command) as process:
        told: list[str] = json.loads(line_of(process))
        yield told


def test_instances_that_begin_at_one_moment_take_different_subnets(host: Inside) -> None:
    before = state_of(host)
    with bridges(host, "together", "one", "two", "three") as names:
        rows = host.rows("-4", "address", "show")
        taken = [
            ipaddress.ip_interface(f"{each['local']}/{each['prefixlen']}").network
            for row in rows
            if row["ifname"] in names
            for each in row["addr_info"]
        ]
    assert len(set(names)) == 3
    assert sorted(map(str, taken)) == ["10.77.0.0/24", "10.77.1.0/24", "10.77.2.0/24"]
    assert state_of(host) == before


def test_the_answer_to_a_command_that_took_too_long_is_not_taken_for_the_next_ones(
    host: Inside,
) -> None:
    with bridges(host, "late", "one") as said:
        assert said == ["came to no end", "told by the second", "done"]


# --------------------------------------------------------------------------------- whom it serves


def connect_packet(name: str, secret: str) -> bytes:
    """This is MQTT 3.1.1's CONNECT (sections 2.2.3 and 3.1)."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2) + value.encode()

    body = text("MQTT") + b"\x04\xc2\x00\x3c" + text("") + text(name) + text(secret)
    assert len(body) < 128
    return b"\x10" + bytes([len(body)]) + body


CONNACK_ACCEPTED: Final = "20020000"
CONNACK_NOT_AUTHORISED: Final = "20020005"


@pytest.mark.parametrize("way", ["ROOTLESS", "GUESTFWD", "HOST_BRIDGE"])
def test_a_service_vm_reaches_the_broker_and_neither_the_other_one_nor_the_host(
    lab: Lab, host: Inside, way: str
) -> None:
    with ExitStack() as stack:
        pool = GuestPool(lab, stack)
        site = stack.enter_context(bus_site(lab, pool, host, way))
        other = network_guest(GuestPool(lab_within(lab, site.bus), stack))
        first, second = site.told["seats"]
        stack.enter_context(other.plugged(second["netdev"], second["mac"]))
        other.configure(f"{second['address']}/24")
        for secret, answer in (
            (site.told["secret"], CONNACK_ACCEPTED),
            ("x", CONNACK_NOT_AUTHORISED),
        ):
            packet = connect_packet(site.told["name"], secret).hex()
            where = f"{second['broker']} {MQTT_PORT}"
            said = other.shell(f"echo {packet} | xxd -r -p | nc {where} | xxd -p")
            assert said.strip() == answer
        attempts = Attempts()
        other.shell(f"arp -i eth0 -s {first['address']} {first['mac']}")
        for address in {first["address"], "10.88.0.1", "10.0.2.2"} - {second["address"]}:
            other.scan(address, [(1, 128), (MQTT_PORT, MQTT_PORT), (5001, 5001)], attempts)
        assert not any(attempts.open.values())


# ---------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_when_it_ends(host: Inside, way: str) -> None:
    before = state_of(host)
    with owner(host, way, "one", *QEMU) as (_, told):
        network = network_of(told["broker"])
        # It is told before it has entered.
        until(lambda: network_of(told["machine"]) == network, "the machine is elsewhere")
    assert ended(told["broker"], within_s=END_S)
    assert ended(told["machine"], within_s=END_S)
    assert state_of(host) == before
    if way in IN_NAMESPACE:
        assert processes_in(network) == set()
    assert not Path(told["socket"]).parent.exists()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_when_its_owner_is_killed(
    host: Inside, way: str, proof_count: Callable[[int], None]
) -> None:
    before = state_of(host)
    for _ in range(3):
        with owner(host, way, "one", *QEMU) as (process, told):
            network = network_of(told["broker"])
            others = processes_in(network_of(host.pid)) - {process.pid}
            process.send_signal(signal.SIGKILL)
            process.wait(END_S)
        for pid in (told["broker"], told["machine"]):
            assert ended(pid, within_s=END_S)
        if way == "HOST_BRIDGE":
            holders = [
                pid for pid in others if pid not in {host.pid, told["broker"], told["machine"]}
            ]
            assert holders
            assert all(ended(pid, within_s=END_S) for pid in holders)
        assert state_of(host) == before
        if way in IN_NAMESPACE:
            assert processes_in(network) == set()
        proof_count(1)


def test_what_a_killed_holder_has_left_is_removed_by_the_next_one(host: Inside) -> None:
    before = state_of(host)
    with owner(host, "HOST_BRIDGE", "one") as (process, told):
        mine = {told["broker"], process.pid, host.pid}
        (holder,) = processes_in(network_of(host.pid)) - mine
        os.kill(holder, signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
        process.wait(END_S)
    assert ended(told["broker"], within_s=END_S)
    assert told["bridge"] in host.links()
    host.run("ip", "link", "set", USER_BRIDGE, "alias", "somebody else's")
    with owner(host, "HOST_BRIDGE", "one") as (_, again):
        assert again["bridge"] == told["bridge"]
    assert state_of(host) == before


def test_a_second_owner_of_the_same_name_is_refused_and_harms_nobody(host: Inside) -> None:
    with owner(host, "HOST_BRIDGE", "one") as (_, told):
        with_first = state_of(host)
        command = (*host.enter, sys.executable, "-m", "tests.isolation.owner", "HOST_BRIDGE", "one")
        second = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=END_S, check=False
        )
        assert "BusNetworkFailed" in second.stderr
        assert "another instance of that name runs" in second.stderr
        assert state_of(host) == with_first
        assert not ended(told["broker"], within_s=0)
