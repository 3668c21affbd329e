"""Each fact that opens a way is told by its check, and by no other verdict than its own."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace

import pytest

from qvmi.manager.isolation.check import Check, Finding, Report, Verdict
from qvmi.manager.isolation.facts import (
    BrokerConfig,
    BusPath,
    Chardev,
    Descriptor,
    Facts,
    GivenDisk,
    Link,
    Netdev,
    Opening,
    OptionOfNetdev,
    SharedFile,
    SharedFolder,
    Sharer,
    Socket,
    TapHolder,
    Unseen,
)
from qvmi.manager.isolation.judge import judge
from qvmi.manager.isolation.tun_place import TUN_DEVICE
from tests.unit.manager.isolation.facts import (
    BROKER,
    BUS_NETWORK,
    OUTSIDE,
    QEMU,
    facts,
    with_,
    with_sockets,
)

REFUTED, OPEN = Verdict.REFUTED, Verdict.NOT_CHECKABLE
Change = Callable[[Facts], Facts]

TAP = Descriptor(14, "/dev/net/tun", interface="tap0")
TAP_NETDEV = Netdev("t", "tap", "ifname=tap0")
SLIRP = Netdev("u", "user", "net=10.0.2.0,restrict=off")
PORT = Socket(901, "tcp", BUS_NETWORK, "10.77.0.1:1883", listening=True)
LOOPBACK = replace(PORT, local="127.0.0.1:1883")
UP = Link(9, "eth0", "", 0, loopback=False)
UNIX = Socket(50, "unix", OUTSIDE, "", peer=51)
TCP = Socket(50, "tcp", OUTSIDE, "10.0.0.1:999", "10.0.0.2:80")
NOT_SEEN = Unseen("hidden from us")
GIVEN = OptionOfNetdev("u", "user")
SECRETS = (("paths", (BusPath("/run/bus/access", frozenset({(1, 2), (1, 7)}), own=(1, 7)),)),)
HOLDER = TapHolder(300, "relay", is_qemu=False, interface="tap9", network=BUS_NETWORK)
PORT_OF_THE_BUS = (
    (
        "broker.links",
        (
            Link(2, "qvmi0", "bridge", 0, loopback=False),
            Link(3, "tap9", "tun", 2, loopback=False),
        ),
    ),
)


def set_to(*changes: tuple[str, object]) -> Change:
    def change(given: Facts) -> Facts:
        for path, value in changes:
            given = with_(given, path, value)
        return given

    return change


def beside(*changes: tuple[str, object]) -> Change:
    """This puts the machine into the broker's network namespace."""
    return set_to(("qemu.network", BUS_NETWORK), *changes)


def tap(*changes: tuple[str, object]) -> tuple[tuple[str, object], ...]:
    return (
        ("qemu.descriptors", (TAP,)),
        ("machine.netdevs", (TAP_NETDEV,)),
        *changes,
    )


CASES: list[tuple[str, Verdict, str, Change]] = [
    # what QEMU tells of networks
    ("netdevs", OPEN, "hidden", set_to(("machine", NOT_SEEN))),
    (
        "netdevs",
        REFUTED,
        "u: slirp without restrict=on reaches 10.77.0.1:1883",
        beside(("machine.netdevs", (SLIRP,)), ("broker.listening", (PORT,))),
    ),
    (
        "netdevs",
        REFUTED,
        "reaches 127.0.0.1:1883",
        beside(("machine.netdevs", (SLIRP,)), ("broker.listening", (LOOPBACK,))),
    ),
    (
        "netdevs",
        REFUTED,
        "a way out by eth0",
        set_to(
            ("machine.netdevs", (SLIRP,)),
            ("broker.listening", (PORT,)),
            ("broker.links", (UP,)),
        ),
    ),
    (
        "netdevs",
        OPEN,
        "hidden",
        set_to(
            ("machine.netdevs", (SLIRP,)),
            ("broker.listening", (PORT,)),
            ("broker.links", NOT_SEEN),
        ),
    ),
    (
        "netdevs",
        OPEN,
        "hidden",
        set_to(("machine.netdevs", (SLIRP,)), ("qemu.network", NOT_SEEN)),
    ),
    (
        "netdevs",
        REFUTED,
        "m: socket socket: mcast=230.0.0.1:1",
        beside(("machine.netdevs", (Netdev("m", "socket", "socket: mcast=230.0.0.1:1"),))),
    ),
    (
        "netdevs",
        OPEN,
        "s: stream",
        set_to(("machine.netdevs", (Netdev("s", "stream", ""),))),
    ),
    (
        "netdevs",
        OPEN,
        "x: brand-new",
        set_to(("machine.netdevs", (Netdev("x", "brand-new", ""),))),
    ),
    ("netdevs", OPEN, "odd", set_to(("machine.netdevs", (Netdev("odd", "", ""),)))),
    ("netdevs", REFUTED, "hostfwd", beside(("machine.forwards", ("TCP[HOST_FORWARD] 15",)))),
    (
        "netdevs",
        REFUTED,
        "guestfwd=tcp:1-unix:/run/bus/mqtt.sock leads to the broker",
        set_to(("options", (OptionOfNetdev("u", guestfwd=("tcp:1-unix:/run/bus/mqtt.sock",)),))),
    ),
    (
        "netdevs",
        OPEN,
        "runs a program",
        set_to(("options", (OptionOfNetdev("u", guestfwd=("tcp:1-cmd:cat",)),))),
    ),
    ("netdevs", OPEN, "plugged in later", set_to(("machine.netdevs", (SLIRP,)))),
    (
        "netdevs",
        OPEN,
        "plugged in later",
        set_to(("machine.netdevs", (SLIRP,)), ("options", (OptionOfNetdev("", "none"),))),
    ),
    # what the kernel tells of interfaces
    ("taps", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    ("taps", OPEN, "hidden", set_to(*tap(("links", NOT_SEEN)))),
    ("taps", OPEN, "hidden", set_to(*tap(("broker.links", NOT_SEEN)))),
    (
        "taps",
        REFUTED,
        "a port of bridge vmnet0, which is the bus's",
        beside(*tap(("bridge", "vmnet0"))),
    ),
    (
        "taps",
        REFUTED,
        "Linux takes packets",
        beside(*tap(("broker.listening", (PORT,)))),
    ),
    ("taps", OPEN, "route_localnet", beside(*tap(("broker.listening", (LOOPBACK,))))),
    ("taps", OPEN, "was not found", beside(*tap(("links", ())))),
    ("taps", OPEN, "hidden", beside(*tap(("broker.process.descriptors", NOT_SEEN)))),
    (
        "taps",
        REFUTED,
        "is in the broker's network namespace",
        set_to(*tap(("links", ()), ("broker.links", (Link(3, "tap0", "tun", 0, loopback=False),)))),
    ),
    (
        "taps",
        OPEN,
        "one of that name",
        set_to(*tap(("broker.links", (Link(3, "tap0", "tun", 0, loopback=False),)))),
    ),
    ("taps", OPEN, "was not found", set_to(*tap(("links", ())))),
    (
        "taps",
        REFUTED,
        "a way out by eth0",
        set_to(*tap(("broker.listening", (PORT,)), ("broker.links", (UP,)))),
    ),
    # sockets
    ("sockets", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    ("sockets", OPEN, "not found anywhere", set_to(("host.unseen", ("not found anywhere",)))),
    (
        "sockets",
        OPEN,
        "no table",
        lambda f: with_(with_sockets(f, UNIX), "host.sockets", {}),
    ),
    (
        "sockets",
        REFUTED,
        "mosquitto (pid 200), which is the broker",
        lambda f: with_(with_sockets(f, UNIX, owner=BROKER), "host.names", {200: "mosquitto"}),
    ),
    (
        "sockets",
        REFUTED,
        "consumer (pid 201), which is on the bus",
        lambda f: with_sockets(f, TCP, owner=201),
    ),
    ("sockets", OPEN, "other end was not found", lambda f: with_sockets(f, UNIX)),
    (
        "sockets",
        OPEN,
        "other end was not found",
        lambda f: with_(with_sockets(f, TCP), "host.far_ends", {50: (51,)}),
    ),
    *(
        (
            "sockets",
            REFUTED,
            "is connected with 10.77.0.1:1883, where the broker listens",
            lambda f, place=place: with_(
                with_sockets(f, replace(TCP, network=BUS_NETWORK, remote="10.77.0.1:1883")),
                "broker.listening",
                (replace(PORT, local=place),),
            ),
        )
        for place in ("10.77.0.1:1883", "0.0.0.0:1883", "[::]:1883")
    ),
    ("sockets", OPEN, "raw frames", lambda f: with_sockets(f, replace(UNIX, protocol="packet"))),
    (
        "sockets",
        OPEN,
        "only QEMU could say",
        lambda f: with_(
            with_sockets(f, replace(TCP, remote="", listening=True)), "machine", NOT_SEEN
        ),
    ),
    # character devices, filters, pipes
    ("chardevs", OPEN, "hidden", set_to(("machine", NOT_SEEN))),
    (
        "chardevs",
        REFUTED,
        "c: disconnected:unix:/run/bus/mqtt.sock leads to the broker",
        set_to(("machine.chardevs", (Chardev("c", "disconnected:unix:/run/bus/mqtt.sock"),))),
    ),
    (
        "chardevs",
        REFUTED,
        "c: disconnected:tcp:10.77.0.1:1883",
        beside(
            ("machine.chardevs", (Chardev("c", "disconnected:tcp:10.77.0.1:1883"),)),
            ("broker.listening", (PORT,)),
        ),
    ),
    (
        "chardevs",
        OPEN,
        "copies the guest's frames",
        set_to(
            ("machine.filters", ("fm: type=filter-mirror,outdev=c2,netdev=u",)),
            ("machine.chardevs", (Chardev("c2", "unix:/x,server=on"),)),
        ),
    ),
    (
        "chardevs",
        REFUTED,
        "/dev/pts/3 is open in consumer (pid 201)",
        set_to(("host.pipes", (("/dev/pts/3", 201),))),
    ),
    # devices
    ("devices", OPEN, "hidden", set_to(("machine", NOT_SEEN))),
    ("devices", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    (
        "devices",
        REFUTED,
        "vhost-vsock-pci leads to every vsock",
        set_to(("machine.devices", frozenset({"vhost-vsock-pci"}))),
    ),
    (
        "devices",
        REFUTED,
        "fd 9: /dev/vhost-vsock",
        set_to(("qemu.descriptors", (Descriptor(9, "/dev/vhost-vsock"),))),
    ),
    *(
        ("devices", OPEN, model, set_to(("machine.devices", frozenset({model}))))
        for model in ("vhost-user-fs-pci", "ivshmem-doorbell", "vfio-pci", "usb-mtp", "usb-host")
    ),
    *(
        ("devices", OPEN, path, set_to(("qemu.descriptors", (Descriptor(9, path),))))
        for path in ("/dev/vfio/12", "/dev/tap7")
    ),
    # QEMU against the kernel
    ("agreement", OPEN, "hidden", set_to(("machine", NOT_SEEN))),
    ("agreement", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    (
        "agreement",
        REFUTED,
        "interface tap0 open, and tells of none",
        set_to(("qemu.descriptors", (TAP,))),
    ),
    (
        "agreement",
        REFUTED,
        "tells of the tap tap0",
        set_to(("machine.netdevs", (TAP_NETDEV,))),
    ),
    (
        "agreement",
        OPEN,
        "1 networks by slirp, and QEMU tells of 0",
        set_to(("options", (OptionOfNetdev("u", "user"),))),
    ),
    (
        "agreement",
        OPEN,
        "u: QEMU tells of restrict=on",
        set_to(
            ("options", (OptionOfNetdev("u", "user"),)),
            ("machine.netdevs", (replace(SLIRP, details="restrict=on"),)),
        ),
    ),
    ("devices", OPEN, "object o: colo-compare", set_to(("machine.objects", {"o": "colo-compare"}))),
    ("agreement", OPEN, "of which no netdev", lambda f: with_sockets(f, TCP, owner=300)),
    # memory, sockets and folders of the machine
    ("shared_memory", OPEN, "hidden", set_to(("qemu.shared", NOT_SEEN))),
    (
        "shared_memory",
        REFUTED,
        "another VM",
        set_to(("host.sharers", (Sharer(300, "qemu-system-x86_64", is_qemu=True, path="/ram"),))),
    ),
    (
        "shared_memory",
        REFUTED,
        "on the bus",
        set_to(("host.sharers", (Sharer(201, "consumer", is_qemu=False, path="/ram"),))),
    ),
    (
        "shared_memory",
        OPEN,
        "is not known",
        set_to(("host.sharers", (Sharer(300, "dpdk", is_qemu=False, path="/ram"),))),
    ),
    ("memory_files", OPEN, "hidden", set_to(("qemu.shared", NOT_SEEN))),
    (
        "memory_files",
        REFUTED,
        "/ram (uid 7, mode 0644) can be opened by everybody",
        set_to(
            (
                "qemu.shared",
                (
                    SharedFile(
                        "/ram",
                        1,
                        2,
                        4096,
                        writable=True,
                        opening=Opening("/ram", 7, 0o644, "everybody"),
                    ),
                ),
            )
        ),
    ),
    ("control_sockets", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    (
        "control_sockets",
        REFUTED,
        "can be opened by group kvm",
        set_to(("control_sockets", (Opening("/run/vm/qmp.sock", 7, 0o770, "group kvm"),))),
    ),
    (
        "control_sockets",
        REFUTED,
        "127.0.0.1:4444 takes anybody",
        lambda f: with_sockets(f, Socket(50, "tcp", OUTSIDE, "127.0.0.1:4444", listening=True)),
    ),
    ("folders", OPEN, "hidden", set_to(("qemu.descriptors", NOT_SEEN))),
    (
        "folders",
        REFUTED,
        "/run, open in QEMU, holds /run/bus/mqtt.sock",
        set_to(
            ("folders", (SharedFolder("open in QEMU", "/run", 1, 2),)),
            ("paths", (BusPath("/run/bus/mqtt.sock", frozenset({(1, 2), (1, 3)})),)),
        ),
    ),
    (
        "folders",
        REFUTED,
        "fd 9: /link is the broker's",
        set_to(*SECRETS, ("qemu.descriptors", (Descriptor(9, "/link", stat.S_IFREG, 1, 7),))),
    ),
    (
        "folders",
        REFUTED,
        "its command line names /run/bus/access, which is the broker's",
        set_to(*SECRETS, ("named", frozenset({(1, 7)}))),
    ),
    (
        "folders",
        OPEN,
        "u: SMB",
        set_to(("options", (OptionOfNetdev("u", "user", folders=(("smb", "/x"),)),))),
    ),
    (
        "folders",
        OPEN,
        "9p of a folder that no process",
        set_to(("machine.devices", frozenset({"virtio-9p-pci"}))),
    ),
    (
        "chardevs",
        REFUTED,
        "c: disconnected:unix:/link leads to the broker",
        set_to(
            ("machine.chardevs", (Chardev("c", "disconnected:unix:/link"),)),
            ("ends", {"c": "/run/bus/mqtt.sock"}),
        ),
    ),
    # the broker
    ("listeners", OPEN, "hidden", set_to(("broker.process.descriptors", NOT_SEEN))),
    (
        "listeners",
        OPEN,
        "no listening socket",
        set_to(("broker.listening", ()), ("broker.sockets", ())),
    ),
    (
        "listeners",
        REFUTED,
        "[::]:1883: on every interface",
        set_to(("broker.listening", (replace(PORT, local="[::]:1883"),))),
    ),
    (
        "listeners",
        REFUTED,
        "to which everybody may connect",
        set_to(("broker.sockets", (Opening("/run/bus/mqtt.sock", 8, 0o777, "everybody"),))),
    ),
    ("access", REFUTED, "let somebody in", set_to(("broker.anonymous", True))),
    ("access", OPEN, "hidden", set_to(("broker.config", NOT_SEEN))),
    (
        "access",
        REFUTED,
        "allows those without a name",
        set_to(("broker.config.anonymous", True), ("broker.anonymous", NOT_SEEN)),
    ),
    ("access", REFUTED, "no access list", set_to(("broker.config.has_access_list", False))),
    ("access", OPEN, "plugin", set_to(("broker.config.beyond", ("plugin",)))),
    ("bus_files", OPEN, "hidden", set_to(("broker.config", NOT_SEEN))),
    (
        "bus_files",
        REFUTED,
        "/run/bus/access (mode 0644) can be opened by everybody",
        set_to(("broker.config.files", (Opening("/run/bus/access", 8, 0o644, "everybody"),))),
    ),
    ("bridge", OPEN, "hidden", set_to(("broker.links", NOT_SEEN))),
    ("bridge", OPEN, "none of that name", set_to(("bridge", "br9"))),
    (
        "bridge",
        REFUTED,
        "its port eth0 is a network card",
        set_to(
            (
                "broker.links",
                (Link(2, "qvmi0", "bridge", 0, loopback=False), replace(UP, master=2)),
            )
        ),
    ),
    ("process", OPEN, "is no QEMU", set_to(("qemu.is_qemu", False))),
    ("process", OPEN, "hidden", set_to(("qemu.is_qemu", NOT_SEEN))),
    (
        "process",
        OPEN,
        "is not at the other end of our QMP connection",
        lambda f: with_(with_sockets(f, UNIX, owner=201), "ours", frozenset({77})),
    ),
    # disks
    ("disks", OPEN, "hidden", set_to(("disks", NOT_SEEN))),
    (
        "disks",
        REFUTED,
        "fd 9: /dev/sdb, which this host has mounted at /run, and which may hold /run/bus/mqtt.sock",
        set_to(
            ("disks", (GivenDisk(9, "/dev/sdb", ("/run",), frozenset({1})),)),
            ("paths", (BusPath("/run/bus/mqtt.sock", frozenset({(1, 2), (1, 3)})),)),
        ),
    ),
    (
        "disks",
        OPEN,
        "fd 9: /image, which this host has mounted at /mnt: what the guest writes",
        set_to(("disks", (GivenDisk(9, "/image", ("/mnt",), frozenset({1})),))),
    ),
    (
        "disks",
        OPEN,
        "fd 9: /dev/nbd0: which program",
        set_to(("disks", (GivenDisk(9, "/dev/nbd0", is_network=True),))),
    ),
    (
        "disks",
        OPEN,
        "a disk by http, for which QEMU connects",
        beside(("machine.disks", frozenset({"http"})), ("broker.listening", (PORT,))),
    ),
    # what others hide, and what is not what it is called
    (
        "shared_memory",
        OPEN,
        "3 processes of other users",
        set_to(
            ("host.hidden", "3 processes of other users"),
            ("qemu.shared", (SharedFile("/ram", 1, 2, 4096, writable=True),)),
        ),
    ),
    *(
        (
            "chardevs",
            OPEN,
            f"{shown}: who else has it open? /proc shows",
            set_to(("host.hidden", "/proc shows none"), ("qemu.descriptors", (each,))),
        )
        for shown, each in (
            ("/dev/pts/3", Descriptor(9, "/dev/ptmx", terminal=3)),
            ("/pipe", Descriptor(9, "/pipe", stat.S_IFIFO)),
        )
    ),
    *(
        (
            "devices",
            OPEN,
            f"fd 9: {path}: a device of this host's",
            set_to(
                (
                    "qemu.descriptors",
                    (Descriptor(9, path, stat.S_IFCHR, special=os.makedev(*number)),),
                )
            ),
        )
        for path, number in (
            ("/dev/vhost-vdpa-0", (511, 0)),
            ("/dev/ttyS0", (4, 64)),
            ("/dev/pts/7", (136, 7)),
            ("/dev/sg0", (21, 0)),
            ("/dev/bus/usb/001/002", (189, 1)),
            ("/dev/mem", (1, 1)),
            ("/mnt/macvtap", (236, 1)),
        )
    ),
    (
        "taps",
        OPEN,
        "tap0 is in network namespace 4711, which was not looked at",
        set_to(*tap(("qemu.descriptors", (replace(TAP, network=4711),)))),
    ),
    (
        "taps",
        REFUTED,
        "tap0 is in the broker's network namespace",
        set_to(
            *tap(
                ("qemu.descriptors", (replace(TAP, network=BUS_NETWORK),)),
                ("broker.links", (Link(3, "tap0", "tun", 0, loopback=False),)),
            )
        ),
    ),
    (
        "taps",
        REFUTED,
        "Linux takes packets",
        beside(
            *tap(
                ("qemu.descriptors", (replace(TAP, target="/x", special=TUN_DEVICE),)),
                ("broker.listening", (PORT,)),
            )
        ),
    ),
    *(
        ("netdevs", OPEN, words, set_to(("machine.netdevs", (netdev,)), *changes))
        for words, netdev, changes in (
            (
                "behind a card that was plugged in later",
                SLIRP,
                (("options", (GIVEN,)), ("machine.plugged", frozenset({"u"}))),
            ),
            (
                "behind h, a port of a hub",
                replace(SLIRP, port="h"),
                (("options", (GIVEN,)),),
            ),
            (
                "of a configuration file",
                replace(SLIRP, name="#net067"),
                (("qemu.arguments", ("qemu", "-readconfig", "x")),),
            ),
        )
    ),
    # who is on the bridge of the bus
    (
        "neighbours",
        REFUTED,
        "tap9 is open in relay (pid 300), which is no QEMU",
        set_to(*PORT_OF_THE_BUS, ("host.taps", (HOLDER,))),
    ),
    (
        "neighbours",
        OPEN,
        "tap9 is open in relay (pid 300), or another one",
        set_to(*PORT_OF_THE_BUS, ("host.taps", (replace(HOLDER, network=0),))),
    ),
    (
        "neighbours",
        OPEN,
        "who has tap9 open: hidden",
        set_to(*PORT_OF_THE_BUS, ("host.hidden", "hidden")),
    ),
]

NAMES = {
    "process": "what was looked at",
    "netdevs": "no network of the guest's",
    "taps": "no interface of QEMU's",
    "sockets": "no socket of QEMU's",
    "chardevs": "no character device",
    "devices": "no device leads",
    "agreement": "QEMU says what",
    "shared_memory": "nobody but QEMU",
    "memory_files": "the guest's memory",
    "control_sockets": "the machine's control",
    "folders": "no folder",
    "disks": "no disk",
    "listeners": "the broker listens",
    "access": "the broker lets",
    "bus_files": "the broker's files",
    "bridge": "bridge ",
    "neighbours": "the bus's taps",
}


def check_of(report: Report, name: str) -> Check:
    (found,) = (check for check in report.checks if check.name.startswith(NAMES[name]))
    return found


def test_the_facts_that_the_cases_change_prove_isolation() -> None:
    report = judge(facts())
    assert report.verdict is Verdict.PROVEN
    assert {check.verdict for check in report.checks} == {Verdict.PROVEN}
    assert report.paths == ()
    assert len(report.checks) == len(NAMES)  # the advice, and no taps


@pytest.mark.parametrize(
    ("name", "verdict", "words", "change"), CASES, ids=lambda part: str(part)[:30]
)
def test_a_fact_that_opens_a_way_is_told(
    name: str, verdict: Verdict, words: str, change: Change
) -> None:
    report = judge(change(facts()))
    check = check_of(report, name)
    told = [each for each in check.findings if words in each.evidence]
    assert [each.verdict for each in told] == [verdict] * len(told)
    assert told, check.findings
    assert check.verdict is verdict
    assert report.verdict is not Verdict.PROVEN
    assert (report.verdict is REFUTED) == bool(report.paths)


def test_every_check_has_a_case() -> None:
    assert {name for name, _, _, _ in CASES} == set(NAMES)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            set_to(
                ("machine.netdevs", (SLIRP,)),
                ("options", (OptionOfNetdev("u"),)),
                ("broker.listening", (PORT,)),
            ),
            id="slirp beside a bus with a network of its own",
        ),
        pytest.param(
            beside(
                ("machine.netdevs", (replace(SLIRP, name="#net123"),)),
                ("options", (OptionOfNetdev("", "user"),)),
            ),
            id="slirp that QEMU has named itself",
        ),
        pytest.param(
            beside(("machine.netdevs", (SLIRP,)), ("options", (OptionOfNetdev("u"),))),
            id="slirp and a broker on a Unix socket",
        ),
        pytest.param(
            beside(
                ("machine.netdevs", (replace(SLIRP, details="restrict=on"),)),
                ("options", (OptionOfNetdev("u"),)),
                ("broker.listening", (PORT,)),
            ),
            id="slirp with restrict beside a broker on a port",
        ),
        pytest.param(
            set_to(*tap(("broker.listening", (PORT,)))), id="a tap and a bus with its own network"
        ),
        pytest.param(beside(*tap()), id="a tap and a broker on a Unix socket"),
        pytest.param(
            set_to(("machine.forwards", ("TCP[HOST_FORWARD] 15",))), id="a port of another network"
        ),
        pytest.param(
            lambda f: with_sockets(f, replace(UNIX, local="/run/vm/qmp.sock"), owner=201),
            id="somebody on the bus holds a monitor",
        ),
        pytest.param(
            lambda f: set_to(("ours", frozenset({77})), ("host.far_ends", {50: (77,)}))(
                with_sockets(f, UNIX, owner=201)
            ),
            id="our own session",
        ),
        pytest.param(
            lambda f: with_sockets(f, UNIX, owner=300), id="a console that somebody else reads"
        ),
        pytest.param(
            lambda f: with_(
                with_(
                    with_sockets(f, replace(TCP, remote="10.77.0.1:1883")),
                    "broker.listening",
                    (PORT,),
                ),
                "machine.chardevs",
                (Chardev("c", "tcp:10.0.0.1:999"),),
            ),
            id="the broker's address in another network",
        ),
        pytest.param(
            set_to(
                ("options", (OptionOfNetdev("u", guestfwd=("tcp:10.0.2.1:1883-unix:/x",)),)),
                ("broker.listening", (PORT,)),
            ),
            id="a guestfwd whose own port is the broker's",
        ),
        pytest.param(
            lambda f: with_sockets(f, Socket(50, "netlink", OUTSIDE)), id="a netlink socket"
        ),
        pytest.param(
            set_to(("host.pipes", (("/dev/pts/3", 300),))), id="a terminal of somebody else's"
        ),
        pytest.param(
            set_to(
                ("machine.netdevs", (SLIRP,)),
                ("options", (OptionOfNetdev("u"),)),
                ("broker.listening", (PORT,)),
                ("broker.links", (replace(UP, up=False),)),
                ("bridge", None),
            ),
            id="an interface that is down",
        ),
        pytest.param(set_to(("broker.anonymous", NOT_SEEN)), id="the broker was not asked"),
        pytest.param(
            set_to(
                (
                    "qemu.descriptors",
                    tuple(
                        Descriptor(number, "/dev/x", stat.S_IFCHR, special=os.makedev(*device))
                        for number, device in (
                            (0, (136, 3)),  # the terminal it was started at
                            (9, (10, 232)),  # kvm
                            (10, (10, 238)),  # vhost-net
                            (11, (1, 3)),  # null
                            (12, (226, 128)),  # graphics
                        )
                    ),
                )
            ),
            id="devices that lead nowhere",
        ),
        pytest.param(
            beside(("machine.disks", frozenset({"nbd"}))),
            id="a disk over the network beside a broker on a Unix socket",
        ),
        pytest.param(
            set_to(("disks", (GivenDisk(9, "/dev/sdb"),))), id="a disk that is the machine's alone"
        ),
        pytest.param(
            set_to(("host.hidden", "hidden"), ("bridge", None)),
            id="others hide what this machine shares with nobody",
        ),
        pytest.param(
            set_to(
                *PORT_OF_THE_BUS,
                (
                    "host.taps",
                    (replace(HOLDER, is_qemu=True), replace(HOLDER, network=OUTSIDE)),
                ),
            ),
            id="a service VM, and a tap of that name elsewhere",
        ),
        pytest.param(
            set_to(
                ("machine.netdevs", (replace(SLIRP, port="hub0port1"),)),
                ("options", (GIVEN,)),
                ("machine.plugged", frozenset({"v"})),
            ),
            id="a network of -net beside a card that was plugged in",
        ),
        pytest.param(
            set_to(
                *tap(
                    ("qemu.descriptors", (replace(TAP, network=OUTSIDE),)),
                    ("broker.links", (Link(3, "tap0", "tun", 0, loopback=False),)),
                    ("bridge", None),
                )
            ),
            id="a tap that has the name of another one in the bus's namespace",
        ),
        pytest.param(
            set_to(
                ("machine.filters", ("fd: type=filter-dump,file=/x,netdev=u",)),
            ),
            id="a filter that writes a file",
        ),
    ],
)
def test_what_opens_no_way_is_not_accused(change: Change) -> None:
    report = judge(change(facts()))
    assert [
        check for check in report.checks if check.decides and check.verdict is not Verdict.PROVEN
    ] == []


def test_one_user_for_all_is_advice() -> None:
    report = judge(with_(facts(), "qemu.uid", 8))
    assert report.verdict is Verdict.PROVEN
    assert [check.verdict for check in report.checks if not check.decides] == [REFUTED]


def test_without_a_bus_only_the_machines_own_doors_are_judged() -> None:
    given = with_(with_(facts(), "broker", None), "bridge", None)
    report = judge(with_(given, "machine.netdevs", (SLIRP,)))
    assert report.verdict is Verdict.PROVEN
    assert not any("broker" in check.name for check in report.checks)


def test_a_qemu_that_was_named_says_who_made_its_socket() -> None:
    check = check_of(judge(with_(facts(), "listener", 42)), "process")
    assert (
        check.findings[0].evidence
        == f"qemu-system-x86_64 (pid {QEMU}), as named; pid 42 made its QMP socket"
    )


def test_of_a_process_that_is_no_qemu_nothing_is_proven_and_what_is_refuted_stays() -> None:
    another = set_to(("qemu.is_qemu", False))
    report = judge(another(with_(facts(), "broker", None)))
    assert {check.verdict for check in report.checks} == {OPEN}
    slirp = beside(("machine.netdevs", (SLIRP,)))
    assert judge(another(slirp(facts()))).paths == judge(slirp(facts())).paths


def test_nothing_looked_at_is_nothing_proven() -> None:
    assert Report(()).verdict is OPEN
    assert Check("empty", ()).verdict is OPEN
    worse = (Finding(Verdict.PROVEN, "a"), Finding(OPEN, "b"), Finding(REFUTED, "c"))
    assert Check("all", worse).verdict is REFUTED
    assert Check("two", worse[:2]).verdict is OPEN


def test_settings_that_nobody_can_read_are_no_proof() -> None:
    config = BrokerConfig("", anonymous=True, has_access_list=False, beyond=(), files=())
    report = judge(with_(facts(), "broker.config", config))
    assert "a broker without a configuration file names no access list" in report.paths
