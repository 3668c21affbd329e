"""Each mistake that lets the guest near the bus, or others near the machine, is found and named."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests.bare_qemu import BareQemu
from tests.isolation.bench import Bench, Examined, Network

TAP = ("-nic", "tap,id=t,ifname=tap0,script=no,downscript=no")
BRIDGE_LISTENER = "listener 1883 10.77.0.1"


def assert_named(examined: Examined, *words: str) -> None:
    """This asserts that a way is told that has these words in it."""
    assert examined.code == 1
    assert examined.document["isolation"]["verdict"] == "refuted"
    assert [way for way in examined.ways if all(word in way for word in words)], examined.ways


def master(network: Network, name: str) -> str:
    """This is the bridge that an interface is a port of, as iproute2 tells."""
    (link,) = json.loads(network.run("ip", "-j", "link", "show", name))
    found: str = link["master"]
    return found


def connected_unix(pid: int, other: int) -> bool:
    """This tells whether two processes have a Unix connection, as ss tells."""
    rows = [
        line.split() for line in ss("-xnpH") if f"pid={pid}," in line or f"pid={other}," in line
    ]
    ends = {(row[5], row[7]) for row in rows}
    return any((peer, inode) in ends for inode, peer in ends)


def run_for(*command: str) -> str:
    """This is what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ss(*options: str) -> list[str]:
    return subprocess.run(
        ("ss", *options), capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture(name="bus")
def bus_network(bench: Bench) -> Network:
    network = bench.network()
    network.bridge("qvmi0", "10.77.0.1/24", "tap0", "tap9")
    return network


def test_a_tap_on_the_bridge_of_the_bus(bench: Bench, bus: Network) -> None:
    broker = bench.broker(network=bus)
    machine = bench.machine(*TAP, network=bus)
    assert master(bus, "tap0") == "qvmi0"
    examined = bench.examine(machine, broker, "--bridge", "qvmi0")
    assert_named(examined, "tap0, a port of bridge qvmi0, which is the bus's")
    assert len(examined.ways) == 1


def test_a_tap_in_the_namespace_of_a_broker_that_listens_on_another_bridge(
    bench: Bench, bus: Network
) -> None:
    bus.ip("link add vmnet0 type bridge")
    bus.ip("link set tap0 master vmnet0")
    broker = bench.broker(BRIDGE_LISTENER, network=bus)
    machine = bench.machine(*TAP, network=bus)
    assert master(bus, "tap0") == "vmnet0"
    assert_named(bench.examine(machine, broker), "tap0, a port of bridge vmnet0", "10.77.0.1:1883")


def test_a_port_of_the_bus_that_a_program_has_open_which_is_no_qemu(
    bench: Bench, bus: Network
) -> None:
    broker = bench.broker(network=bus)
    opener = str(Path(__file__).with_name("tap_opener.py"))
    space = f"/proc/{bus.holder}/ns/net"
    relay = bench.start(
        *(sys.executable, "-I", "-S", opener, space, "tap9", "/bin/sh", "-c", "exec cat")
    )
    bench.until(lambda: "cat" in Path(f"/proc/{relay}/comm").read_text(), "the relay is not there")
    examined = bench.examine(bench.machine(), broker, "--bridge", "qvmi0")
    assert_named(examined, f"tap9 is open in cat (pid {relay}), which is no QEMU")


def test_a_tap_of_another_network_that_has_the_name_of_one_here_is_not_said_to_be_isolated(
    bench: Bench,
) -> None:
    third, outside = bench.network(), bench.network()
    for network in (third, outside):
        network.bridge("vmnet0", "10.88.0.1/24", "tap0")
    opener = str(Path(__file__).with_name("tap_opener.py"))
    machine = bench.machine_through(
        (opener, f"/proc/{third.holder}/ns/net", "tap0"),
        *("-nic", "tap,id=t,fd=TAP"),
        network=outside,
    )
    examined = bench.examine(machine, bench.broker())
    assert (examined.code, examined.ways) == (4, [])
    assert any("tap0 is in network namespace" in found for found in examined.open)


def test_a_tap_of_the_bus_that_was_handed_to_a_machine_outside(bench: Bench, bus: Network) -> None:
    broker = bench.broker(BRIDGE_LISTENER, network=bus)
    opener = Path(__file__).with_name("tap_opener.py")
    machine = bench.machine_through(
        (str(opener), f"/proc/{bus.holder}/ns/net", "tap0"), "-nic", "tap,id=t,fd=TAP"
    )
    assert Path(f"/proc/{machine.pid}/ns/net").samefile("/proc/self/ns/net")
    examined = bench.examine(machine, broker)
    assert_named(examined, "tap0 is in the broker's network namespace, a port of bridge qvmi0")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.77.0.1", "::1"])
def test_slirp_without_restrict_beside_a_broker_on_a_port(
    bench: Bench, bus: Network, address: str
) -> None:
    broker = bench.broker(f"listener 1883 {address}", network=bus)
    machine = bench.machine("-nic", "user,id=u", network=bus)
    place = f"[{address}]:1883" if ":" in address else f"{address}:1883"
    examined = bench.examine(machine, broker)
    assert_named(examined, "u: slirp without restrict=on", place, f"pid {broker.pid}")
    assert len(examined.ways) == 1


def test_slirp_that_may_leave_for_the_bus_by_a_veth(bench: Bench, bus: Network) -> None:
    bus.ip("link add up0 type veth peer name down0")
    bus.ip("link set up0 up")
    bus.ip("link set down0 up")
    broker = bench.broker(BRIDGE_LISTENER, network=bus)
    examined = bench.examine(bench.machine("-nic", "user,id=u"), broker)
    assert_named(examined, "u: slirp", "10.77.0.1:1883", "way out", "up0")


def test_a_veth_on_the_bridge_of_the_bus(bench: Bench, bus: Network) -> None:
    bus.ip("link add up0 type veth peer name down0")
    bus.ip("link set up0 master qvmi0")
    examined = bench.examine(bench.machine(), bench.broker(network=bus), "--bridge", "qvmi0")
    assert_named(examined, "port up0 is a veth")


def test_a_forwarded_port_in_the_namespace_of_the_bus(bench: Bench, bus: Network) -> None:
    machine = bench.machine(
        "-nic", "user,id=u,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22", network=bus
    )
    assert ":2222" in bus.run("ss", "-ltnH")
    examined = bench.examine(machine, bench.broker(network=bus))
    assert_named(examined, "hostfwd", "127.0.0.1 2222")


def test_a_guestfwd_to_the_socket_of_the_broker(bench: Bench) -> None:
    broker = bench.broker()
    forward = f"guestfwd=tcp:10.0.2.100:1883-unix:{broker.socket}"
    machine = bench.machine("-nic", f"user,id=u,restrict=on,{forward}")
    assert connected_unix(machine.pid, broker.pid)
    examined = bench.examine(machine, broker)
    assert_named(examined, "guestfwd=tcp:10.0.2.100:1883", str(broker.socket))
    assert_named(examined, "is connected with mosquitto", f"pid {broker.pid}", "the broker")


def test_a_guestfwd_that_runs_a_program_with_the_socket_of_the_broker(bench: Bench) -> None:
    broker = bench.broker()
    forward = f"guestfwd=tcp:10.0.2.100:1883-cmd:socat - UNIX-CONNECT:{broker.socket}"
    machine = bench.machine("-nic", f"user,id=u,restrict=on,{forward}")
    assert_named(bench.examine(machine, broker), "-cmd:socat", str(broker.socket), "the broker")


def test_a_guestfwd_that_runs_any_program_is_not_said_to_be_isolated(bench: Bench) -> None:
    forward = "guestfwd=tcp:10.0.2.100:1883-cmd:cat"
    machine = bench.machine("-nic", f"user,id=u,restrict=on,{forward}")
    examined = bench.examine(machine, bench.broker())
    assert (examined.code, examined.ways) == (4, [])
    assert any("runs a program for the guest" in found for found in examined.open)


def test_a_guestfwd_that_is_plugged_in_afterwards_is_not_said_to_be_isolated(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine("-nic", "none")
    assert bench.examine(machine, broker).code == 0
    forward = f"tcp:10.0.2.100:1883-cmd:socat - UNIX-CONNECT:{broker.socket}"
    late = {"type": "user", "id": "late", "restrict": True, "guestfwd": [{"str": forward}]}
    machine.monitor.execute("netdev_add", **late)
    examined = bench.examine(machine, broker)
    assert (examined.code, examined.ways) == (4, [])
    assert any("late: slirp that was plugged in later" in found for found in examined.open)


def test_a_network_that_was_plugged_in_again_with_a_guestfwd_is_not_said_to_be_isolated(
    bench: Bench,
) -> None:
    broker = bench.broker()
    machine = bench.machine("-netdev", "user,id=u,restrict=on", "-device", "e1000,netdev=u,id=n")
    assert bench.examine(machine, broker).code == 0
    forward = f"tcp:10.0.2.100:1883-cmd:socat - UNIX-CONNECT:{broker.socket}"
    again = {"type": "user", "id": "u", "restrict": True, "guestfwd": [{"str": forward}]}
    machine.monitor.execute("netdev_del", id="u")
    machine.monitor.execute("netdev_add", **again)
    machine.monitor.execute("device_add", driver="e1000", netdev="u")
    examined = bench.examine(machine, broker)
    assert (examined.code, examined.ways) == (4, [])
    assert any("u: slirp behind a card that was plugged in later" in e for e in examined.open)


@pytest.mark.parametrize("how", ["-set", "-readconfig"])
def test_a_guestfwd_that_is_given_beside_the_network_is_found(bench: Bench, how: str) -> None:
    broker = bench.broker()
    forward = f"tcp:10.0.2.100:1883-cmd:socat - UNIX-CONNECT:{broker.socket}"
    if how == "-set":
        given = ("-netdev", "user,id=u,restrict=on", "-device", "e1000,netdev=u")
        machine = bench.machine(*given, "-set", f"netdev.u.guestfwd={forward}")
        assert_named(bench.examine(machine, broker), "u: guestfwd=", "leads to the broker")
        return
    config = bench.new_folder() / "vm.cfg"
    config.write_text(f'[nic]\ntype = "user"\nrestrict = "on"\nguestfwd = "{forward}"\n')
    examined = bench.examine(bench.machine("-readconfig", str(config)), broker)
    assert (examined.code, examined.ways) == (4, [])
    assert any("slirp of a configuration file" in found for found in examined.open)


def test_a_serial_port_that_is_the_socket_of_the_broker(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine(
        *("-chardev", f"socket,id=c,path={broker.socket}", "-serial", "chardev:c")
    )
    assert connected_unix(machine.pid, broker.pid)
    examined = bench.examine(machine, broker)
    assert_named(examined, "unix is connected with mosquitto", "the broker")


def test_a_serial_port_that_is_the_port_of_the_broker(bench: Bench, bus: Network) -> None:
    broker = bench.broker("listener 1883 10.77.0.1", network=bus)
    machine = bench.machine("-serial", "tcp:10.77.0.1:1883", network=bus)
    examined = bench.examine(machine, broker)
    assert_named(examined, "tcp 10.77.0.1:", "is connected with mosquitto", "the broker")
    assert_named(examined, "<-> 10.77.0.1:1883", "leads to the broker")


def test_a_serial_port_that_tries_again_to_reach_the_broker(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine()
    newer = machine.monitor.execute("query-version")["qemu"]["major"] >= 10
    address = {"type": "unix", "data": {"path": str(broker.socket)}}
    again = {"reconnect-ms": 60_000} if newer else {"reconnect": 60}
    backend = {"type": "socket", "data": {"addr": address, "server": False, **again}}
    broker.socket.rename(away := broker.folder / "away")
    with socket.socket(socket.AF_UNIX) as decoy:
        decoy.bind(str(broker.socket))
        decoy.listen()
        machine.monitor.execute("chardev-add", id="c", backend=backend)
        with decoy.accept()[0]:
            away.rename(broker.socket)

    def waits() -> bool:
        return "disconnected" in str(machine.monitor.execute("query-chardev"))

    bench.until(waits, "QEMU does not see the end of its connection")
    assert not connected_unix(machine.pid, broker.pid)
    assert_named(bench.examine(machine, broker), "disconnected:unix", "leads to the broker")


@pytest.mark.parametrize("listener", ["listener 1883", "listener 1883 0.0.0.0", "listener 1883 ::"])
def test_a_broker_that_listens_on_every_interface(
    bench: Bench, bus: Network, listener: str
) -> None:
    examined = bench.examine(bench.machine(), bench.broker(listener, network=bus))
    wildcard = "[::]:1883" if "::" in listener else "0.0.0.0:1883"
    assert_named(examined, f"listens on {wildcard}: on every interface")


def test_a_broker_that_lets_in_whoever_comes(bench: Bench) -> None:
    # With use_username_as_clientid nobody without a name has an id to be let in by.
    without = ["allow_anonymous", "use_username_as_clientid"]
    broker = bench.broker("allow_anonymous true", without=without)
    examined = bench.examine(bench.machine(), broker)
    assert examined.ways == ["it let somebody in who gave no name"]
    assert examined.code == 1


def test_a_broker_that_was_told_to_let_in_whoever_comes_when_it_starts_again(bench: Bench) -> None:
    broker = bench.broker()
    config = broker.folder / "mosquitto.conf"
    config.write_text(config.read_text().replace("anonymous false", "anonymous true"))
    assert_named(bench.examine(bench.machine(), broker), str(config), "without a name")


def test_a_broker_without_an_access_list(bench: Bench) -> None:
    examined = bench.examine(bench.machine(), bench.broker(without=["acl_file"]))
    assert_named(examined, "names no access list")


def test_an_access_list_that_lets_everybody_speak_for_everybody(bench: Bench) -> None:
    broker = bench.broker()
    with (broker.folder / "access").open("a") as access:
        access.write("pattern readwrite #\n")
    assert_named(bench.examine(bench.machine(), broker), "speak for everybody: pattern #")


def test_secrets_of_the_broker_that_others_can_read(bench: Bench) -> None:
    broker = bench.broker(readable=["passwords"])
    broker.folder.chmod(0o755)
    examined = bench.examine(bench.machine(), broker)
    assert_named(examined, f"{broker.folder}/passwords (mode 0644) can be opened by everybody")


def test_a_socket_of_the_broker_that_others_can_connect_to(bench: Bench) -> None:
    broker = bench.broker()
    broker.folder.chmod(0o755)
    broker.socket.chmod(0o777)
    examined = bench.examine(bench.machine(), broker)
    assert_named(examined, f"{broker.socket} (mode 0777), to which everybody may connect")


def test_memory_of_the_guest_that_others_can_read(bench: Bench) -> None:
    ram = bench.new_folder(0o755) / "ram"
    ram.touch(0o644)
    ram.chmod(0o644)
    machine = bench.machine(*memory(ram))
    assert (
        subprocess.run(
            ("setpriv", "--reuid", "65534", "--clear-groups", "cat", str(ram)),
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode
        == 0
    )
    assert_named(bench.examine(machine), f"{ram} (uid 0, mode 0644) can be opened by everybody")


def memory(ram: Path, *, name: str = "ram") -> tuple[str, ...]:
    backend = f"memory-backend-file,id={name},size=32M,mem-path={ram},share=on"
    return ("-object", backend, "-machine", f"q35,memory-backend={name}")


def test_a_qmp_socket_that_others_can_connect_to(bench: Bench) -> None:
    machine = bench.machine()
    machine.folder.chmod(0o755)
    Path(machine.qmp).chmod(0o777)
    assert_named(bench.examine(machine), f"{machine.qmp} (uid 0, mode 0777)", "everybody")


def test_a_monitor_on_a_port(bench: Bench, bus: Network) -> None:
    machine = bench.machine("-monitor", "tcp:127.0.0.1:4444,server=on,wait=off", network=bus)
    assert_named(bench.examine(machine), "127.0.0.1:4444 takes anybody")


def test_a_network_that_is_plugged_in_afterwards(bench: Bench, bus: Network) -> None:
    broker = bench.broker(BRIDGE_LISTENER, network=bus)
    machine = bench.machine(network=bus)
    before = bench.examine(machine, broker)
    assert (before.code, before.ways, before.open) == (0, [], [])
    machine.monitor.execute("netdev_add", type="user", id="late")
    assert_named(
        bench.examine(machine, broker), "late: slirp without restrict=on", "10.77.0.1:1883"
    )


def test_a_network_that_everybody_in_the_namespace_may_join(bench: Bench, bus: Network) -> None:
    bus.ip("route add 224.0.0.0/4 dev lo")
    machine = bench.machine(
        "-netdev", "socket,id=m,mcast=230.0.0.1:1234", "-device", "e1000,netdev=m", network=bus
    )
    examined = bench.examine(machine, bench.broker(network=bus))
    assert_named(examined, "m: socket", "mcast=230.0.0.1:1234", "may join")


@pytest.mark.parametrize("kind", ["stream", "chardev"])
def test_a_connection_to_a_program_that_is_on_the_bus(bench: Bench, kind: str) -> None:
    broker = bench.broker()
    bench.member(broker)
    path = bench.new_folder() / "relay"
    relay = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
    relay.bind(str(path))
    relay.listen()
    options = {
        "stream": ("-netdev", f"stream,id=s,addr.type=unix,addr.path={path}"),
        "chardev": ("-chardev", f"socket,id=c,path={path}"),
    }
    machine = bench.machine(*options[kind])
    bench.stack.enter_context(relay.accept()[0])
    examined = bench.examine(machine, broker)
    assert_named(examined, "unix is connected with python", f"pid {os.getpid()}", "on the bus")


def test_a_terminal_that_a_program_on_the_bus_has_open(bench: Bench) -> None:
    broker = bench.broker()
    bench.member(broker)
    machine = bench.machine("-chardev", "pty,id=p")
    place = next(
        c["filename"] for c in machine.monitor.execute("query-chardev") if c["label"] == "p"
    )
    path = str(place).removeprefix("pty:")
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    bench.stack.callback(os.close, descriptor)
    assert_named(bench.examine(machine, broker), path, f"pid {os.getpid()}", "on the bus")


def test_a_named_pipe_that_a_program_on_the_bus_has_open(bench: Bench) -> None:
    broker = bench.broker()
    bench.member(broker)
    pipe = bench.new_folder() / "pipe"
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDWR)
    bench.stack.callback(os.close, descriptor)
    machine = bench.machine("-chardev", f"pipe,id=p,path={pipe}")
    assert_named(bench.examine(machine, broker), str(pipe), f"pid {os.getpid()}", "on the bus")


def test_a_named_pipe_that_feeds_a_program_on_the_bus(bench: Bench) -> None:
    broker = bench.broker()
    pipe = bench.new_folder() / "pipe"
    os.mkfifo(pipe)
    machine = bench.machine("-chardev", f"pipe,id=p,path={pipe}")
    account = broker.account
    command = ("mosquitto_pub", "--unix", broker.socket, "-u", account.name, "-P", account.secret)
    with pipe.open("rb") as source:
        feeder = subprocess.Popen((*command, "-t", "x", "-l"), stdin=source)
    bench.stack.callback(feeder.wait)
    bench.stack.callback(feeder.kill)
    bench.until(lambda: connected_unix(feeder.pid, broker.pid), "the feeder is not on the bus")
    assert_named(bench.examine(machine, broker), str(pipe), f"pid {feeder.pid}", "on the bus")


def test_a_shared_folder_that_holds_the_socket_of_the_bus(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine(
        *("-fsdev", f"local,id=f,path={broker.folder.parent},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=f,mount_tag=x"),
    )
    examined = bench.examine(machine, broker)
    assert_named(examined, f"{broker.folder.parent}, open in qemu", f"holds {broker.socket}")


def test_a_folder_with_the_files_of_the_bus_that_slirp_serves_by_tftp(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine("-nic", f"user,id=u,restrict=on,tftp={broker.folder.parent}")
    examined = bench.examine(machine, broker)
    assert_named(examined, f"{broker.folder.parent}, served by tftp of u", "holds")


@pytest.mark.parametrize("what", ["folder", "socket"])
def test_a_shared_folder_in_which_the_bus_is_mounted(bench: Bench, what: str) -> None:
    broker = bench.broker()
    shared = bench.new_folder()
    place = shared / "inner"
    source = broker.folder if what == "folder" else broker.socket
    place.mkdir() if what == "folder" else place.touch()
    fsdev = f"local,id=f,path={shared},security_model=none"
    # In a mount namespace of its own: the tests' own is left alone.
    machine = bench.machine_within(
        ("unshare", "--mount", "sh", "-c", f'mount --bind {source} {place} && exec "$@"', "sh"),
        *("-fsdev", fsdev, "-device", "virtio-9p-pci,fsdev=f,mount_tag=x"),
    )
    assert_named(bench.examine(machine, broker), f"{place}, mounted in {shared}, open in qemu")


def test_a_secret_of_the_broker_that_the_firmware_hands_to_the_guest(bench: Bench) -> None:
    broker = bench.broker()
    secrets, link = broker.folder / "passwords", bench.new_folder() / "innocent"
    link.symlink_to(secrets)
    machine = bench.machine("-fw_cfg", f"name=opt/x,file={link}")
    opened = Path(f"/proc/{machine.pid}/fd")
    assert str(secrets) not in {str(each.readlink()) for each in opened.iterdir()}
    assert_named(bench.examine(machine, broker), f"names {secrets}, which is the broker's")


def place_of(machine: BareQemu, name: str) -> str:
    """This is where a character device leads, as QEMU says it."""
    devices = machine.monitor.execute("query-chardev")
    return str(next(one["filename"] for one in devices if one["label"] == name))


def test_a_serial_port_that_would_reach_the_broker_by_another_name(bench: Bench) -> None:
    broker = bench.broker()
    link = bench.new_folder() / "innocent"
    machine = bench.machine()
    newer = machine.monitor.execute("query-version")["qemu"]["major"] >= 10
    again = {"reconnect-ms": 60_000} if newer else {"reconnect": 60}
    address = {"type": "unix", "data": {"path": str(link)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False, **again}}
    # It is let in and thrown out: else its first try might come as late as the link does.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(link))
        server.listen()
        machine.monitor.execute("chardev-add", id="c", backend=backend)
        server.accept()[0].close()
        link.unlink()
    bench.until(lambda: place_of(machine, "c").startswith("disconnected:"), "it is connected")
    link.symlink_to(broker.socket)
    assert not connected_unix(machine.pid, broker.pid)
    assert_named(
        bench.examine(machine, broker), f"c: disconnected:unix:{link}", "leads to the broker"
    )


def test_a_disk_that_is_a_file_of_the_brokers(bench: Bench) -> None:
    broker = bench.broker()
    secrets = broker.folder / "passwords"
    machine = bench.machine("-drive", f"file={secrets},format=raw,if=virtio,readonly=on")
    assert_named(bench.examine(machine, broker), f"{secrets} is the broker's")


def test_a_disk_that_this_host_has_mounted_is_not_said_to_be_isolated(bench: Bench) -> None:
    image, place = bench.new_folder() / "image", bench.new_folder()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(("mkfs.ext4", "-q", "-F", str(image)), check=True)
    attached = subprocess.run(
        ("losetup", "--find", "--show", str(image)), capture_output=True, text=True, check=False
    )
    if attached.returncode:
        pytest.skip(f"no loop device can be had: {attached.stderr}")
    loop = attached.stdout.strip()
    try:
        # In a mount namespace of its own, as a container's is: the tests' own sees nothing of it.
        mounted = f"mount {loop} {place} && exec cat"
        holder = bench.start("unshare", "--mount", "sh", "-c", mounted)
        table = Path(f"/proc/{holder}/mountinfo")
        bench.until(lambda: str(place) in table.read_text(), "the image is not mounted")
        for disk in (str(image), loop):
            machine = bench.machine(
                "-drive", f"file={disk},format=raw,if=virtio,readonly=on,file.locking=off"
            )
            examined = bench.examine(machine, bench.broker())
            assert (examined.code, examined.ways) == (4, [])
            shown = f"{disk}, which this host has mounted at {place}"
            assert any(shown in found for found in examined.open), examined.open
            machine.kill()
    finally:
        bench.stack.close()
        run_for("losetup", "--detach", loop)


def test_a_folder_that_is_shown_as_a_disk_is_not_said_to_be_isolated(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine("-drive", f"file=fat:{broker.folder},format=raw,if=virtio,readonly=on")
    examined = bench.examine(machine, broker)
    assert (examined.code, examined.ways) == (4, [])
    assert any("vvfat disk shows the guest a folder" in found for found in examined.open)


def test_a_key_of_the_broker_that_others_can_read(bench: Bench) -> None:
    broker = bench.broker()
    key = bench.new_folder(0o755) / "key.pem"
    key.touch()
    key.chmod(0o644)
    with (broker.folder / "mosquitto.conf").open("a") as config:
        config.write(f"keyfile {key}\n")
    assert_named(bench.examine(bench.machine(), broker), f"{key} (mode 0644)", "everybody")


def test_a_folder_with_the_socket_of_the_bus_that_virtiofsd_shares(bench: Bench) -> None:
    broker = bench.broker()
    path = bench.new_folder() / "fs.sock"
    program = shutil.which("virtiofsd", path="/usr/lib/qemu:/usr/libexec:/usr/lib")
    if program is None:
        pytest.skip("there is no virtiofsd")
    shared = broker.folder.parent
    bench.start(program, f"--socket-path={path}", "-o", f"source={shared}")
    bench.until(path.is_socket, "virtiofsd does not listen")
    machine = bench.machine(
        *("-object", "memory-backend-memfd,id=ram,size=32M,share=on"),
        *("-machine", "q35,memory-backend=ram", "-chardev", f"socket,id=c,path={path}"),
        *("-device", "vhost-user-fs-pci,chardev=c,tag=x"),
    )
    examined = bench.examine(machine, broker)
    assert_named(examined, "open in virtiofsd", f"holds {broker.socket}")


def test_a_filter_that_copies_frames_to_who_knows_whom_is_not_said_to_be_isolated(
    bench: Bench,
) -> None:
    path = bench.new_folder() / "frames"
    machine = bench.machine(
        *("-nic", "user,id=u,restrict=on"),
        *("-chardev", f"socket,id=c,path={path},server=on,wait=off"),
        *("-object", "filter-mirror,id=fm,netdev=u,queue=all,outdev=c"),
    )
    examined = bench.examine(machine, bench.broker())
    assert (examined.code, examined.ways) == (4, [])
    assert any("fm: type=filter-mirror copies the guest's frames" in e for e in examined.open)


@pytest.mark.parametrize("write", [True, False])
def test_memory_that_another_machine_may_write_to(bench: Bench, *, write: bool) -> None:
    ram = bench.new_folder() / "ram"
    ram.touch(0o600)
    machine = bench.machine(*memory(ram))
    readonly = "" if write else ",readonly=on"
    shared = f"memory-backend-file,id=um,mem-path={ram},size=32M,share=on{readonly}"
    service = bench.machine("-object", shared, "-device", "ivshmem-plain,memdev=um")
    assert (f"{ram}" in writable_maps(service.pid)) is write
    examined = bench.examine(machine, bench.broker())
    if write:
        assert_named(examined, f"{ram} is mapped writable", f"pid {service.pid}", "another VM")
    else:
        assert (examined.code, examined.ways, examined.open) == (0, [], [])


@pytest.mark.parametrize("mode", ["r+b", "rb"])
def test_memory_that_a_program_on_the_bus_has_open(bench: Bench, mode: str) -> None:
    ram = bench.new_folder() / "ram"
    ram.touch(0o600)
    machine = bench.machine(*memory(ram))
    broker = bench.broker()
    bench.member(broker)
    bench.stack.enter_context(ram.open(mode))
    examined = bench.examine(machine, broker)
    if mode == "r+b":
        assert_named(examined, f"{ram} is open for writing", f"pid {os.getpid()}", "on the bus")
    else:
        assert (examined.code, examined.ways, examined.open) == (0, [], [])


def writable_maps(pid: int) -> str:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return "\n".join(line for line in lines if re.match(r"\S+ rw.s", line))


def test_a_machine_whose_qmp_is_held_is_judged_by_the_kernel_alone(
    bench: Bench, bus: Network
) -> None:
    broker = bench.broker(network=bus)
    machine = bench.machine(*TAP, network=bus)
    holder = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
    holder.connect(machine.qmp)
    assert holder.recv(1 << 12).startswith(b'{"QMP"')
    for _ in range(4):  # QEMU's queue takes two
        examined = bench.examine(machine, broker, "--bridge", "qvmi0")
        assert_named(examined, "tap0, a port of bridge qvmi0, which is the bus's")
        assert any("held by" in found for found in examined.open)


def test_a_qemu_that_keeps_its_tap_to_itself_is_found_out(bench: Bench, bus: Network) -> None:
    outside = bench.network()
    outside.bridge("vmnet0", "10.88.0.1/24", "tap5")
    broker = bench.broker(network=bus)
    tap = "tap,id=t,ifname=tap5,script=no,downscript=no"
    machine = bench.machine("-nic", tap, network=outside)
    with lying(machine, hide="type=tap") as path:
        honest = bench.examine(machine, broker)
        examined = bench.examine(machine, broker, "--pid", str(machine.pid), qmp=str(path))
    assert (honest.code, honest.ways, honest.open) == (0, [], [])
    assert_named(examined, "QEMU has the interface tap5 open, and tells of none")


def test_a_qemu_that_keeps_its_slirp_to_itself_is_not_believed(bench: Bench) -> None:
    broker = bench.broker()
    machine = bench.machine("-nic", "user,id=u")
    with lying(machine, hide="type=user") as path:
        examined = bench.examine(machine, broker, "--pid", str(machine.pid), qmp=str(path))
    assert (examined.code, examined.ways) == (4, [])
    assert any("1 networks by slirp, and QEMU tells of 0" in found for found in examined.open)


@contextmanager
def lying(machine: BareQemu, *, hide: str) -> Iterator[Path]:
    """This is a QMP socket that leaves lines out of what QEMU's human monitor says."""
    path = machine.folder / "lying.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        relay = threading.Thread(target=_relay, args=(server, machine.qmp, hide), daemon=True)
        relay.start()
        yield path


def _relay(server: socket.socket, qmp: str, hide: str) -> None:
    client, _ = server.accept()
    with client, socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(qmp)
        back = threading.Thread(target=_pump, args=(client, qemu, lambda line: line), daemon=True)
        back.start()

        def edited(line: bytes) -> bytes:
            message = json.loads(line)
            if isinstance(message.get("return"), str):
                said = message["return"].splitlines(keepends=True)
                message["return"] = "".join(each for each in said if hide not in each)
            return json.dumps(message).encode() + b"\n"

        _pump(qemu, client, edited)


def _pump(source: socket.socket, target: socket.socket, edit: Callable[[bytes], bytes]) -> None:
    with source.makefile("rb") as lines:
        for line in lines:
            target.sendall(edit(line))
    target.shutdown(socket.SHUT_WR)
