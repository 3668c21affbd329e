"""NICs and netdevs as QEMU's human monitor lists them: the texts are of QEMU 7.2.22."""

import pytest

from qvmi.errors import QmpProtocolError
from qvmi.qmp.devices import MAX_DEVICES, parse_netdevs, parse_nics

QUEUES = """\
a: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \\ w: index=0,type=tap,ifname=tap0,script=no,downscript=no
a: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \\ w: index=1,type=tap,fd=9
"""
HUB = """\
hub 0
 \\ hub0port1: #net110: index=0,type=user,net=10.0.2.0,restrict=off
 \\ hub0port0: e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57
"""
FILTERED = """\
n0: index=0,type=user,net=10.0.2.0,restrict=off
filters:
  - f1: type=filter-dump,file=/tmp/x,maxlen=65536,netdev=n0,queue=rx
n1: index=0,type=user,net=10.0.2.0,restrict=off
"""
LISTED = {
    "none": ("", (), ()),
    "two queues of one NIC": (QUEUES, ("a",), ("w",)),
    "one on a hub": (HUB, ("e1000.0",), ("#net110",)),
    "several": (HUB + QUEUES, ("e1000.0", "a"), ("#net110", "w")),
    "a netdev without a NIC": (
        "lonely: index=0,type=user,net=10.0.2.0,restrict=off\n",
        (),
        ("lonely",),
    ),
    "one with a filter": (FILTERED, (), ("n0", "n1")),
    "nonsense": ("\\\\ : index=,type=nic\nindex=0,type=nic,", (), ()),
}


@pytest.mark.parametrize(("printed", "nics", "netdevs"), LISTED.values(), ids=LISTED)
def test_the_names_of_nics_and_netdevs_are_read_and_of_nothing_else(
    printed: str, nics: tuple[str, ...], netdevs: tuple[str, ...]
) -> None:
    assert parse_nics(printed) == nics
    assert parse_netdevs(printed) == netdevs


def test_more_nics_than_there_can_be_are_refused() -> None:
    line = "n{}: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\n"
    with pytest.raises(QmpProtocolError, match="NICs"):
        parse_nics("".join(line.format(number) for number in range(MAX_DEVICES + 1)))
