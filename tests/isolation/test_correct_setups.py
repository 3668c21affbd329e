"""Set-ups in which the machine has no way to the bus are not accused."""

import asyncio
import os
import socket

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from tests.isolation.bench import Bench, RunningBroker

BRIDGE_LISTENER = "listener 1883 10.77.0.1"


def test_a_machine_without_a_network_is_isolated(bench: Bench) -> None:
    examined = bench.examine(bench.machine(), bench.broker())
    assert (examined.code, examined.ways, examined.open) == (0, [], [])
    assert "QEMU tells of no NIC and of no netdev" in examined.findings("proven")


def test_slirp_with_restrict_is_isolated_beside_a_broker_that_listens_on_a_port(
    bench: Bench,
) -> None:
    network = bench.network()
    network.ip("link set lo up")
    broker = bench.broker("listener 1883 127.0.0.1", network=network)
    machine = bench.machine("-nic", "user,id=u,restrict=on", network=network)
    examined = bench.examine(machine, broker)
    assert (examined.code, examined.ways, examined.open) == (0, [], [])


def test_a_tap_on_another_bridge_is_isolated_from_a_broker_with_a_network_of_its_own(
    bench: Bench,
) -> None:
    bus, outside = bench.network(), bench.network()
    bus.bridge("qvmi0", "10.77.0.1/24", "tap9")
    outside.bridge("vmnet0", "10.88.0.1/24", "tap0")
    broker = bench.broker(BRIDGE_LISTENER, network=bus)
    machine = bench.machine("-nic", "tap,ifname=tap0,script=no,downscript=no", network=outside)
    examined = bench.examine(machine, broker, "--bridge", "qvmi0")
    assert (examined.code, examined.ways, examined.open) == (0, [], [])
    assert any("tap0, a port of bridge vmnet0" in found for found in examined.findings("proven"))


def test_slirp_has_no_way_to_a_broker_that_listens_on_a_unix_socket_alone(bench: Bench) -> None:
    examined = bench.examine(bench.machine("-nic", "user,id=u"), bench.broker())
    assert (examined.code, examined.ways, examined.open) == (0, [], [])
    assert any("Unix sockets alone" in found for found in examined.findings("proven"))


def test_without_a_bus_nothing_is_accused_and_what_is_reached_is_told(bench: Bench) -> None:
    machine = bench.machine("-nic", "user,id=u,hostfwd=tcp:127.0.0.1:0-:22")
    examined = bench.examine(machine)
    assert (examined.code, examined.ways, examined.open) == (0, [], [])
    assert any("u: slirp without restrict=on reaches" in e for e in examined.findings("proven"))


def test_private_memory_a_console_and_a_harmless_folder_are_not_accused(bench: Bench) -> None:
    broker = bench.broker()
    shared, console = bench.new_folder(), bench.new_folder() / "console"
    ram = bench.new_folder(0o755) / "ram"
    ram.touch(0o600)
    backend = f"memory-backend-file,id=ram,size=32M,mem-path={ram},share=on"
    machine = bench.machine(
        *("-object", backend, "-machine", "q35,memory-backend=ram"),
        *("-serial", f"unix:{console},server=on,wait=off", "-chardev", "pty,id=p"),
        *("-fsdev", f"local,id=f,path={shared},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=f,mount_tag=x"),
    )
    reader = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
    reader.connect(str(console))
    examined = bench.examine(machine, broker)
    assert (examined.code, examined.ways, examined.open) == (0, [], [])
    proven = examined.findings("proven")
    assert any(f"{ram} (uid 0, mode 0600) is closed to others" in found for found in proven)
    assert any("connected with python" in e and f"(pid {os.getpid()})" in e for e in proven)
    assert any(f"{shared}, open in qemu" in found for found in proven)


def test_the_broker_that_qvmi_starts_itself_is_not_accused(bench: Bench) -> None:
    machine = bench.machine("-nic", "user,id=u")

    async def examined() -> None:
        async with mosquitto([Account.of_codepack("vm", "pack")]) as broker:
            found = RunningBroker(broker.pid or 0, broker.socket.parent, Account("nobody"))
            result = await asyncio.to_thread(bench.examine, machine, found)
            assert (result.code, result.ways, result.open) == (0, [], [])
            assert any("refused somebody who gave no name" in e for e in result.findings("proven"))

    asyncio.run(examined())


def test_that_one_user_runs_all_is_advice_and_no_accusation(bench: Bench) -> None:
    examined = bench.examine(bench.machine(), bench.broker())
    assert any("are both uid 0" in f for f in examined.findings("refuted", decides=False))
    assert examined.code == 0
