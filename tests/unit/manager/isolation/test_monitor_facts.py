"""What QEMU prints of its networks is read as it is, and what is odd in it is told, never dropped."""

from collections.abc import Mapping

import pytest

from qvmi.errors import QmpProtocolError
from qvmi.manager.isolation.facts import Chardev, Machine, Netdev, OptionOfNetdev
from qvmi.manager.isolation.monitor_facts import ask_machine, network_options
from qvmi.qmp.events import EventStream
from qvmi.qmp.monitor import ANSWER_TIMEOUT_S, NO_ARGUMENTS, Monitor, QemuVersion
from tests.asynchronous import asynchronous

# Printed by QEMU 7.2.22 on Debian 12.
NETWORK = r"""hub 0
 \ h: u2: index=0,type=user,net=10.0.2.0,restrict=off
s: index=0,type=stream,
m: index=0,type=socket,socket: mcast=230.0.0.1:1234
virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \ t: index=0,type=tap,ifname=tap0,script=no,downscript=no
filters:
  - fm: type=filter-mirror,vnet_hdr_support=false,outdev=c2,position=tail,netdev=u,queue=tx
  - fd: type=filter-dump,file=/tmp/pcap,maxlen=65536,netdev=u,queue=all
c1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:58
 \ v: index=0,type=tap,ifname=tap1,script=no,downscript=no
filters:
  - fv: type=filter-dump,file=/tmp/v,maxlen=65536,netdev=v,queue=rx
"""
USERNET = """Hub -1 (u):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  15       127.0.0.1  2222       10.0.2.15    22     0     0
  TCP[ESTABLISHED]   16       127.0.0.1  2222       10.0.2.15    22     0     0
"""
TREE = """bus: main-system-bus
  type System
  dev: i440FX-pcihost, id ""
    bus: pci.0
      dev: ivshmem-plain, id "x"
"""


class ScriptedQemu(Monitor):
    """This answers as it is told."""

    def __init__(self, **answers: object) -> None:
        self.answers: dict[str, object] = {
            "info network": NETWORK,
            "info usernet": USERNET,
            "info qtree": TREE,
            "query-chardev": [
                {"frontend-open": True, "filename": "unix:/q,server=on", "label": "compat_monitor0"}
            ],
            "qom-list": [
                {"name": "type", "type": "string"},
                {"name": "fm", "type": "child<filter-mirror>"},
            ],
            "query-named-block-nodes": [{"drv": "vvfat", "file": "x"}, {"drv": "raw"}],
        } | answers

    @property
    def target(self) -> str:
        return "scripted"

    @property
    def version(self) -> QemuVersion:
        return QemuVersion(7, 2, 22)

    @property
    def ended(self) -> bool:
        return False

    @property
    def run_state_events(self) -> Mapping[str, int]:
        return {}

    def peer_pid(self) -> int | None:
        return None

    def events(self) -> EventStream:
        raise NotImplementedError

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> object:
        del timeout_s
        return self.answers[str(arguments.get("command-line", command))]

    async def close(self, *, keep_open: bool = False) -> None:
        pass


@asynchronous
async def test_all_that_has_a_way_out_is_read() -> None:
    assert await ask_machine(ScriptedQemu()) == Machine(
        netdevs=(
            Netdev("u2", "user", "net=10.0.2.0,restrict=off", "h"),
            Netdev("s", "stream", ""),
            Netdev("m", "socket", "socket: mcast=230.0.0.1:1234"),
            Netdev("virtio-net-pci.0", "nic", "model=virtio-net-pci,macaddr=52:54:00:12:34:56"),
            Netdev("t", "tap", "ifname=tap0,script=no,downscript=no"),
            Netdev("c1", "nic", "model=e1000,macaddr=52:54:00:12:34:58"),
            Netdev("v", "tap", "ifname=tap1,script=no,downscript=no"),
        ),
        filters=(
            "fm: type=filter-mirror,vnet_hdr_support=false,outdev=c2,position=tail,netdev=u,queue=tx",
            "fd: type=filter-dump,file=/tmp/pcap,maxlen=65536,netdev=u,queue=all",
            "fv: type=filter-dump,file=/tmp/v,maxlen=65536,netdev=v,queue=rx",
        ),
        forwards=("TCP[HOST_FORWARD]  15       127.0.0.1  2222       10.0.2.15    22     0     0",),
        chardevs=(Chardev("compat_monitor0", "unix:/q,server=on"),),
        devices=frozenset({"i440FX-pcihost", "ivshmem-plain"}),
        objects={"fm": "filter-mirror"},
        disks=frozenset({"vvfat", "raw"}),
    )


@asynchronous
async def test_a_line_in_no_known_form_is_a_netdev_of_no_known_kind() -> None:
    machine = await ask_machine(ScriptedQemu(**{"info network": "new: what=ever\n"}))
    assert machine.netdevs == (Netdev("new: what=ever", "", ""),)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("info network", 7),
        ("query-chardev", [{"label": "c"}]),
        ("query-chardev", {}),
        ("qom-list", [{"name": 1, "type": "x"}]),
        ("info qtree", "x\n" * 100_001),
        ("query-named-block-nodes", [{"file": "x"}]),
    ],
)
@asynchronous
async def test_an_answer_in_another_form_is_told(question: str, answer: object) -> None:
    with pytest.raises(QmpProtocolError):
        await ask_machine(ScriptedQemu(**{question: answer}))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-m", "64"), ()),
        (("-nic", "user,id=u,restrict=on"), (OptionOfNetdev("u", "user", restricted=True),)),
        (("-nic", "user"), (OptionOfNetdev("", "user"),)),
        (("-nic", "model=e1000,type=user"), (OptionOfNetdev("", "user"),)),
        (
            ("--netdev", "user,id=u,guestfwd=tcp:1:2-cmd:a b,guestfwd=tcp:3:4-unix:/x,,y"),
            (OptionOfNetdev("u", "user", guestfwd=("tcp:1:2-cmd:a b", "tcp:3:4-unix:/x,y")),),
        ),
        (
            (
                "-netdev",
                '{"type":"user","id":"u","restrict":true,"guestfwd":[{"str":"tcp:1:2-cmd:a"}]}',
            ),
            (OptionOfNetdev("u", "user", restricted=True, guestfwd=("tcp:1:2-cmd:a",)),),
        ),
        (("-netdev", '{"id":"u","guestfwd":"odd"}'), (OptionOfNetdev("u", guestfwd=("odd",)),)),
        (("-netdev", '{"id":'), (OptionOfNetdev(""),)),
        (("-netdev", "{" * 100_000), (OptionOfNetdev(""),)),
        (("-netdev",), ()),
        (
            ("-set", "netdev.u.guestfwd=tcp:1:2-cmd:a", "-set", "device.u.x=1"),
            (OptionOfNetdev("u", guestfwd=("tcp:1:2-cmd:a",)),),
        ),
        (("-set", "nic.u.tftp=/x"), (OptionOfNetdev("u", folders=(("tftp", "/x"),)),)),
        (
            ("-nic", "user,id=u,tftp=/a,,b,smb=/c"),
            (OptionOfNetdev("u", "user", folders=(("tftp", "/a,b"), ("smb", "/c"))),),
        ),
        (
            ("-netdev", '{"type":"user","id":"u","tftp":"/x"}'),
            (OptionOfNetdev("u", "user", folders=(("tftp", "/x"),)),),
        ),
    ],
)
def test_network_options_are_read_in_both_forms(
    arguments: tuple[str, ...], expected: tuple[OptionOfNetdev, ...]
) -> None:
    assert network_options(arguments) == expected
