"""Names and addresses of a bridge on the host."""

import ipaddress
import shutil
import subprocess

import pytest

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.bridge import MAX_SEATS, Bridge
from qvmi.manager.bus_network.host_bridge import bridge_name, filter_rules, free_subnet

LONGEST_INTERFACE = 15  # IFNAMSIZ less its NUL


def network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


def test_names_of_the_longest_instance_and_its_last_port_fit_the_kernel() -> None:
    bridge = Bridge(bridge_name("x" * 63))
    assert len(bridge.port(MAX_SEATS - 1).tap) <= LONGEST_INTERFACE
    assert bridge_name("a") != bridge_name("b")


def test_every_port_has_an_address_of_its_own() -> None:
    ports = [Bridge().port(number) for number in range(MAX_SEATS)]
    assert len({port.address for port in ports} | {Bridge().address}) == MAX_SEATS + 1
    assert len({port.mac for port in ports}) == MAX_SEATS
    assert "10.77.0.255" not in {port.address for port in ports}


@pytest.mark.parametrize(
    ("used", "free"),
    [
        ([], "10.77.0.0/24"),
        (["0.0.0.0/0"], "10.77.0.0/24"),
        (["10.77.0.5/32"], "10.77.1.0/24"),
        (["10.77.0.0/17"], "10.77.128.0/24"),
    ],
)
def test_the_first_subnet_that_meets_none_of_the_hosts_is_taken(used: list[str], free: str) -> None:
    assert free_subnet(map(network, used)) == network(free)


def test_a_host_that_uses_all_of_them_is_refused() -> None:
    with pytest.raises(BusNetworkFailed, match=r"10\.77\.0\.0/16"):
        free_subnet([network("10.0.0.0/8")])


def test_nft_understands_the_rules() -> None:
    if shutil.which("nft", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("nft is missing: apt-get install nftables")
    apart = ("unshare", "--user", "--map-root-user", "--net", "--")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces may not be made here")
    done = subprocess.run(
        [*apart, "/usr/sbin/nft", "-f", "-"],
        input=filter_rules(Bridge("qv0"), 1883),
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
