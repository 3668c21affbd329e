"""Facts of a machine that is isolated, to be changed by a test into those of one that is not."""

from dataclasses import replace
from typing import Any

from qvmi.manager.isolation.facts import (
    Broker,
    BrokerConfig,
    Descriptor,
    Facts,
    Host,
    Link,
    Machine,
    Opening,
    Process,
    Socket,
)

__all__ = ["BROKER", "BUS_NETWORK", "OUTSIDE", "QEMU", "facts", "with_", "with_sockets"]

QEMU, BROKER, OUTSIDE, BUS_NETWORK = 100, 200, 4026, 5000

_LISTENER = Socket(900, "unix", BUS_NETWORK, "mqtt.sock", listening=True)


def _process(pid: int, program: str, network: int, uid: int) -> Process:
    return Process(pid, uid, program, (program,), network, (), ())


def facts() -> Facts:
    """These are of a machine without a network, beside a broker in a network of its own."""
    broker = Broker(
        process=_process(BROKER, "mosquitto", BUS_NETWORK, 8),
        config=BrokerConfig(
            "/run/bus/mosquitto.conf",
            anonymous=False,
            has_access_list=True,
            beyond=(),
            files=(Opening("/run/bus/access", 8, 0o600, ""),),
        ),
        listening=(_LISTENER,),
        sockets=(Opening("/run/bus/mqtt.sock", 8, 0o770, ""),),
        anonymous=False,
        members=frozenset({BROKER, 201}),
        links=(Link(1, "lo", "", 0, loopback=True), Link(2, "qvmi0", "bridge", 0, loopback=False)),
    )
    return Facts(
        machine=Machine((), (), (), (), frozenset({"virtio-blk-pci"}), {}),
        options=(),
        qemu=_process(QEMU, "qemu-system-x86_64", OUTSIDE, 7),
        listener=QEMU,
        links=(
            Link(1, "lo", "", 0, loopback=True),
            Link(3, "tap0", "tun", 4, loopback=False),
            Link(4, "vmnet0", "bridge", 0, loopback=False),
        ),
        controls=frozenset({"/run/vm/qmp.sock", ":4444"}),
        control_sockets=(Opening("/run/vm/qmp.sock", 7, 0o700, ""),),
        ours=frozenset(),
        folders=(),
        paths=(),
        host=Host({}, {}, {}, {201: "consumer", 300: "screen"}, (), ()),
        broker=broker,
        bridge="qvmi0",
    )


def with_(given: Facts, path: str, value: object) -> Facts:
    """This changes one fact, named by its path, such as ``broker.process.uid``."""
    name, _, rest = path.partition(".")
    changes: dict[str, Any] = {name: with_(getattr(given, name), rest, value) if rest else value}
    return replace(given, **changes)


def with_sockets(given: Facts, *sockets: Socket, owner: int | None = None) -> Facts:
    """This gives QEMU sockets, whose other ends one process has."""
    descriptors = tuple(
        Descriptor(10 + at, f"socket:[{each.inode}]", 0o140000, 0, each.inode)
        for at, each in enumerate(sockets)
    )
    given = with_(given, "qemu.descriptors", descriptors)
    given = with_(given, "host.sockets", {each.inode: each for each in sockets})
    if owner is None:
        return given
    given = with_(given, "host.far_ends", {each.inode: (each.inode + 1,) for each in sockets})
    return with_(given, "host.owners", {each.inode + 1: (owner,) for each in sockets})
