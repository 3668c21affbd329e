"""A bus network that stands: where its broker runs, and a place for each service VM."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from qvmi.bus.place import HERE, Place
from qvmi.bus.topic import is_name
from qvmi.errors import BusNetworkFailed, UsageError
from qvmi.manager.bus_network.bridge import MAX_SEATS, Bridge, Port, quiet_script
from qvmi.manager.bus_network.host_bridge import host_bridge
from qvmi.manager.bus_network.level import Choice, Way
from qvmi.manager.bus_network.namespace import new_namespace
from qvmi.manager.bus_network.seat import Seat, seat_by_forwarding, seat_on_port

__all__ = ["MQTT_PORT", "BusNetwork", "bus_network"]

MQTT_PORT: Final = 1883
"""Where service VMs find the broker."""

_Plug = Callable[[Port], Awaitable[None]]


class BusNetwork:
    """This is a network of one instance; :func:`bus_network` makes it.

    Attributes:
        instance: its name.
        choice: its level, and why it is no better one.
        bridge: its bridge; None at level B, which has none.
        place: where its broker is to run; see `qvmi.bus.broker.mosquitto`.
    """

    def __init__(
        self, instance: str, choice: Choice, place: Place, bridge: Bridge | None, plug: _Plug
    ) -> None:
        self.instance = instance
        self.choice = choice
        self.bridge = bridge
        self.place = place
        self._plug = plug
        self._numbers: dict[str, int] = {}
        self._seats: dict[str, Seat] = {}

    async def seat(self, service: str, broker: Path) -> Seat:
        """This is the place of a service VM, made when it is first asked for.

        Args:
            service: the VM's name.
            broker: the broker's Unix socket.

        Raises:
            BusNetworkFailed: it cannot be made, or there are too many.
        """
        if service not in self._seats:
            # A number whose making failed is not given to another: something may be left of it.
            number = self._numbers[service] = len(self._numbers)
            if number >= MAX_SEATS:
                raise BusNetworkFailed(service, f"a bus has {MAX_SEATS} places at most")
            self._seats[service] = await self._new_seat(number, broker)
        return self._seats[service]

    async def _new_seat(self, number: int, broker: Path) -> Seat:
        if self.bridge is None:
            return seat_by_forwarding(broker, MQTT_PORT, number)
        port = self.bridge.port(number)
        await self._plug(port)
        return seat_on_port(self.bridge, port, MQTT_PORT, self.place.enter)


@asynccontextmanager
async def bus_network(choice: Choice, *, instance: str = "qvmi") -> AsyncIterator[BusNetwork]:
    """This makes the network that was chosen, and removes it when the block ends or this program is killed.

    Args:
        choice: which level, by `choose`.
        instance: a name; of level C there is one network of a name at a time.

    Raises:
        UsageError: this is no name.
        BusNetworkFailed: the host refuses; nothing of it is left.
    """
    if not is_name(instance):
        raise UsageError(f"{instance!r} is no name of an instance: a-z, 0-9 and -, at most 63")
    if choice.way is Way.GUESTFWD:
        yield BusNetwork(instance, choice, HERE, None, _plug_nothing)
        return
    making = _on_host if choice.way is Way.HOST_BRIDGE else _in_namespace
    async with making(choice, instance) as network:
        yield network


@asynccontextmanager
async def _in_namespace(choice: Choice, instance: str) -> AsyncIterator[BusNetwork]:
    bridge = Bridge()
    rootless = choice.way is Way.ROOTLESS
    async with new_namespace(rootless=rootless) as namespace:
        # Quiet first: what is made afterwards is made without IPv6.
        await namespace.run("sh", text=quiet_script())
        await namespace.run("ip", "-batch", "-", text=bridge.words)

        async def plug(port: Port) -> None:
            await namespace.run("ip", "-batch", "-", text=bridge.port_words(port))
            await namespace.run("bridge", "-batch", "-", text=bridge.address_words(port))

        place = Place(namespace.enter, bridge.address, MQTT_PORT, as_root=rootless)
        yield BusNetwork(instance, choice, place, bridge, plug)


@asynccontextmanager
async def _on_host(choice: Choice, instance: str) -> AsyncIterator[BusNetwork]:
    async with host_bridge(instance, MQTT_PORT) as made:
        bridge = made.bridge

        async def plug(port: Port) -> None:
            await made.run("ip", "-batch", "-", text=bridge.port_words(port))
            await made.run("bridge", "-batch", "-", text=bridge.address_words(port))

        place = Place((), bridge.address, MQTT_PORT)
        yield BusNetwork(instance, choice, place, bridge, plug)


async def _plug_nothing(_port: Port) -> None:
    """This has nothing to do: level B has no ports."""
