"""Root in a user VM tries everything to reach the bus, however the VM is attached, and nothing arrives.

What arrives is told by tcpdump on the bus and at the service VM, and by a listener beside the broker. The
same attempts of a VM that is attached wrongly do arrive.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.guests.lab import Lab
from tests.guests.pool import GuestPool
from tests.isolation.capture import Capture, captured
from tests.isolation.frames import MARKER
from tests.isolation.namespaces import GATEWAY, USER_BRIDGE, USER_TAP, Inside, stand_in_host
from tests.isolation.site import BUS_MAC, Site, bus_site, canary, lab_within
from tests.isolation.user_vm import (
    MQTT_PORT,
    Attempts,
    NetworkGuest,
    Ports,
    Target,
    network_guest,
    stranger_beside,
)
from tests.proofs import proof_size

# Each step waits for guests that share two cores; all ports take minutes.
pytestmark = pytest.mark.timeout(proof_size(ci=600, full=7200))

CANARY_PORT: Final = 1884
HOST_PORT: Final = 4712
SERVICE_PORT: Final = 5001
"""What every guest of the lab listens on, at all its addresses."""

PATIENT_MS: Final = 30_000
"""For what does answer, however busy the host is."""

SLIRP_GATEWAY: Final = "10.0.2.2"
SLIRP_OWN: Final = "10.0.2.15"
FORWARDED: Final = "10.0.2.100"

TAP: Final = f"tap,id=bus,ifname={USER_TAP},script=no,downscript=no"
SLIRP: Final = "user,id=bus"
RESTRICTED: Final = "user,id=bus,restrict=on"


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def host(stack: ExitStack) -> Inside:
    return stack.enter_context(stand_in_host())


@pytest.fixture(scope="module")
def user_vm(lab: Lab, host: Inside, stack: ExitStack) -> NetworkGuest:
    return network_guest(GuestPool(lab_within(lab, host), stack))


@pytest.fixture(scope="module")
def sites(lab: Lab, host: Inside, stack: ExitStack) -> Callable[[str], Site]:
    """These are the sites by their way, each made when it is first asked for."""
    made: dict[str, Site] = {}

    def site(way: str) -> Site:
        if way not in made:
            made[way] = stack.enter_context(bus_site(lab, GuestPool(lab, stack), host, way))
        return made[way]

    return site


FEW: Final = ((1, 128), (MQTT_PORT, CANARY_PORT), (SERVICE_PORT, SERVICE_PORT))


def ports() -> Ports:
    """These are the ports that are tried by way of the host: all of them where time does not matter."""
    return ((1, 65535),) if proof_size(ci=0, full=1) else FEW


class Watch:
    """This watches the bus and the service VM's port while a user VM tries."""

    def __init__(self, site: Site, folder: Path, stack: ExitStack) -> None:
        self._site = site
        broker = site.targets[0].address
        self._bus = stack.enter_context(captured(site.bus, site.bridge, folder / "bus"))
        self._service = stack.enter_context(captured(site.bus, site.tap, folder / "service"))
        self._canary = stack.enter_context(canary(site.bus, broker, CANARY_PORT))

    def arrived(self) -> tuple[list[bytes], list[str]]:
        """These are the frames that neither broker nor service sent, and who came to the canary."""
        # It passes the bridge, and then the service's port.
        self._service.fence(self._site.bridge, self._site.targets[1].mac)
        frames = [*self._bus.frames(), *self._service.frames()]
        return [frame for frame in frames if self._foreign(frame)], self._canary.came()

    def _foreign(self, frame: bytes) -> bool:
        known = {bytes.fromhex(one.mac.replace(":", "")) for one in self._site.targets}
        return MARKER in frame or frame[6:12] not in known


def tries_from_tap(vm: NetworkGuest, targets: tuple[Target, ...], left: Capture) -> Attempts:
    attempts = Attempts()
    with vm.plugged(TAP):
        vm.configure("10.88.0.2/24", GATEWAY)
        vm.scan(GATEWAY, [(HOST_PORT, HOST_PORT)], attempts, wait_ms=PATIENT_MS)
        vm.through_the_gateway("10.88.0.2", GATEWAY, targets, ports(), attempts)
        vm.as_a_neighbour(targets, FEW, attempts)
        left.wait_for(MARKER, count=attempts.frames)
    return attempts


def tries_from_slirp(vm: NetworkGuest, netdev: str, targets: tuple[Target, ...]) -> Attempts:
    attempts = Attempts()
    with vm.plugged(netdev):
        vm.configure(f"{SLIRP_OWN}/24", SLIRP_GATEWAY)
        vm.scan(SLIRP_GATEWAY, [(HOST_PORT, HOST_PORT)], attempts, wait_ms=PATIENT_MS)
        vm.as_a_neighbour(targets, FEW, attempts)
        vm.through_the_gateway(SLIRP_OWN, SLIRP_GATEWAY, targets, ports(), attempts)
        # QEMU answers in order: whatever was sent before has been dealt with.
        assert vm.answered_arp(SLIRP_GATEWAY, seconds=60)
    return attempts


def assert_nothing_is_open(attempts: Attempts, targets: tuple[Target, ...]) -> None:
    assert {target.address: attempts.open[target.address] for target in targets} == {
        target.address: set() for target in targets
    }


@pytest.mark.parametrize("way", ["ROOTLESS", "HOST_BRIDGE"])
def test_from_a_tap_nothing_reaches_the_bus(
    sites: Callable[[str], Site],
    user_vm: NetworkGuest,
    way: str,
    tmp_path: Path,
    proof_count: Callable[[int], None],
) -> None:
    site = sites(way)
    with ExitStack() as stack:
        watch = Watch(site, tmp_path, stack)
        left = stack.enter_context(captured(site.host, USER_TAP, tmp_path / "left"))
        on_host = stack.enter_context(canary(site.host, GATEWAY, HOST_PORT))
        attempts = tries_from_tap(user_vm, site.targets, left)
        assert watch.arrived() == ([], [])
        assert "tcp 10.88.0.2" in on_host.came()
    assert attempts.open.pop(GATEWAY) == {HOST_PORT}
    assert_nothing_is_open(attempts, site.targets)
    if way == "ROOTLESS":
        assert attempts.arp == set()
    proof_count(attempts.tried + attempts.frames)


@pytest.mark.parametrize(
    ("way", "netdev"),
    [
        pytest.param("ROOTLESS", SLIRP, id="ROOTLESS-slirp"),
        pytest.param("ROOTLESS", RESTRICTED, id="ROOTLESS-restricted"),
        pytest.param("HOST_BRIDGE", RESTRICTED, id="HOST_BRIDGE-restricted"),
    ],
)
def test_from_user_networking_nothing_reaches_the_bus(
    sites: Callable[[str], Site],
    user_vm: NetworkGuest,
    way: str,
    netdev: str,
    tmp_path: Path,
    proof_count: Callable[[int], None],
) -> None:
    site = sites(way)
    with ExitStack() as stack:
        watch = Watch(site, tmp_path, stack)
        on_host = stack.enter_context(canary(site.host, "127.0.0.1", HOST_PORT))
        attempts = tries_from_slirp(user_vm, netdev, site.targets)
        assert watch.arrived() == ([], [])
        reached_host = {HOST_PORT} if netdev == SLIRP else set()
        assert attempts.open.pop(SLIRP_GATEWAY) == reached_host
        assert bool(on_host.came()) == bool(reached_host)
    assert_nothing_is_open(attempts, site.targets)
    assert attempts.arp == set()
    proof_count(attempts.tried + attempts.frames)


@pytest.mark.parametrize("netdev", [TAP, SLIRP, RESTRICTED], ids=["tap", "slirp", "restricted"])
def test_where_the_bus_has_no_network_nobody_finds_it(
    sites: Callable[[str], Site],
    user_vm: NetworkGuest,
    netdev: str,
    tmp_path: Path,
    proof_count: Callable[[int], None],
) -> None:
    site = sites("GUESTFWD")
    targets = (Target(FORWARDED, BUS_MAC), Target("10.0.2.16", site.targets[1].mac))
    with ExitStack() as stack:
        left = stack.enter_context(captured(site.host, USER_TAP, tmp_path / "left"))
        at = GATEWAY if netdev == TAP else "127.0.0.1"
        stack.enter_context(canary(site.host, at, HOST_PORT))
        if netdev == TAP:
            attempts = tries_from_tap(user_vm, targets, left)
        else:
            attempts = tries_from_slirp(user_vm, netdev, targets)
    assert bool(attempts.open.get(GATEWAY) or attempts.open.get(SLIRP_GATEWAY)) == (
        netdev != RESTRICTED
    )
    assert_nothing_is_open(attempts, targets)
    assert f"pid={site.told['broker']}," not in site.host.run("ss", "-Htulnp")
    proof_count(attempts.tried + attempts.frames)


@pytest.mark.parametrize("way", ["ROOTLESS", "GUESTFWD", "HOST_BRIDGE"])
def test_without_a_card_there_is_nowhere_to_send(
    sites: Callable[[str], Site], user_vm: NetworkGuest, way: str
) -> None:
    site, attempts = sites(way), Attempts()
    assert user_vm.shell("ls /sys/class/net").split() == ["dummy0", "lo"]
    for target in site.targets:
        user_vm.scan(target.address, ports(), attempts)
    assert_nothing_is_open(attempts, site.targets)


# ------------------------------------------------------------------------------- attached wrongly


def wrongly_attached(lab: Lab, where: Inside, stack: ExitStack) -> NetworkGuest:
    return network_guest(GuestPool(lab_within(lab, where), stack))


EXACT: Final = tuple((port, port) for port in (MQTT_PORT, CANARY_PORT, SERVICE_PORT))


def test_a_vm_that_is_a_port_of_the_bus_does_get_through(
    lab: Lab, sites: Callable[[str], Site], tmp_path: Path
) -> None:
    site, attempts = sites("ROOTLESS"), Attempts()
    broker, service = site.targets
    site.bus.run("ip", "tuntap", "add", "dev", "rogue0", "mode", "tap")
    site.bus.run("ip", "link", "set", "rogue0", "master", site.bridge, "up")
    with ExitStack() as stack:
        stack.callback(site.bus.run, "ip", "link", "delete", "rogue0")
        vm = wrongly_attached(lab, site.bus, stack)
        watch = Watch(site, tmp_path, stack)
        with vm.plugged("tap,id=bus,ifname=rogue0,script=no,downscript=no"):
            vm.as_one(
                stranger_beside(site.targets), site.targets, EXACT, attempts, wait_ms=PATIENT_MS
            )
            vm.send_every_frame(site.targets, attempts)
            assert vm.answered_arp(broker.address, seconds=60)
        frames, came = watch.arrived()
    assert attempts.open == {
        broker.address: {MQTT_PORT, CANARY_PORT},
        service.address: {SERVICE_PORT},
    }
    assert f"udp 10.77.0.66 {MARKER.decode()}" in came
    assert "tcp 10.77.0.66" in came
    assert sum(MARKER in frame for frame in frames) > 100


def test_a_vm_whose_qemu_is_in_the_namespace_of_the_bus_does_get_through(
    lab: Lab, sites: Callable[[str], Site]
) -> None:
    site, attempts = sites("ROOTLESS"), Attempts()
    broker = site.targets[0]
    with ExitStack() as stack:
        vm = wrongly_attached(lab, site.bus, stack)
        listening = stack.enter_context(canary(site.bus, broker.address, CANARY_PORT))
        with vm.plugged(SLIRP):
            vm.configure(f"{SLIRP_OWN}/24", SLIRP_GATEWAY)
            vm.scan(broker.address, EXACT, attempts, wait_ms=PATIENT_MS)
        assert f"tcp {broker.address}" in listening.came()
    assert attempts.open == {broker.address: {MQTT_PORT, CANARY_PORT}}


def test_a_vm_that_is_given_a_service_vms_netdev_does_get_through(
    sites: Callable[[str], Site], user_vm: NetworkGuest
) -> None:
    site, attempts = sites("GUESTFWD"), Attempts()
    with user_vm.plugged(site.told["seats"][1]["netdev"]):
        user_vm.configure(f"{SLIRP_OWN}/24")
        user_vm.scan(FORWARDED, [(MQTT_PORT, MQTT_PORT)], attempts, wait_ms=PATIENT_MS)
    assert attempts.open == {FORWARDED: {MQTT_PORT}}


def test_a_tap_that_is_moved_to_the_bridge_on_the_host_does_get_through(
    sites: Callable[[str], Site], user_vm: NetworkGuest, tmp_path: Path
) -> None:
    site, attempts = sites("HOST_BRIDGE"), Attempts()
    broker = site.targets[0]
    site.host.run("ip", "link", "set", USER_TAP, "master", site.bridge)
    with ExitStack() as stack:
        stack.callback(site.host.run, "ip", "link", "set", USER_TAP, "master", USER_BRIDGE)
        watch = Watch(site, tmp_path, stack)
        with user_vm.plugged(TAP):
            stranger = stranger_beside(site.targets)
            user_vm.as_one(
                stranger, [broker], [(MQTT_PORT, MQTT_PORT)], attempts, wait_ms=PATIENT_MS
            )
            user_vm.send_every_frame(site.targets, attempts)
        frames, _ = watch.arrived()
    assert attempts.open == {broker.address: {MQTT_PORT}}
    assert sum(MARKER in frame for frame in frames) > 100


def test_on_a_shared_host_arp_tells_that_the_bus_has_an_address(
    sites: Callable[[str], Site], user_vm: NetworkGuest
) -> None:
    """It is the host's own answer, for any address of its: only a namespace of its own would not give it."""
    site = sites("HOST_BRIDGE")
    with user_vm.plugged(TAP):
        user_vm.configure("10.88.0.2/24", GATEWAY)
        assert user_vm.answered_arp(site.targets[0].address, seconds=60)
