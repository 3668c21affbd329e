"""A bridge in the host's own network namespace, which is gone again whoever is killed.

Whatever is made, a process of its own makes (``holder.py``), and removes when its input ends, as it does when
this program is killed. Only where that process is killed too does something stay; the next bridge of that
name removes it.
"""

import asyncio
import hashlib
import ipaddress
import itertools
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.bridge import Bridge
from qvmi.manager.bus_network.command import COMMAND_TIMEOUT_S, run
from qvmi.manager.bus_network.holder import TAKEN

__all__ = ["Holder", "HostBridge", "bridge_name", "filter_rules", "free_subnet", "host_bridge"]

_HOLDER: Final = Path(__file__).with_name("holder.py")

_NAME_DIGITS: Final = 8
"""Hex digits of an instance's name in those of its interfaces, which have 15 characters in all."""

_CANDIDATES: Final = ipaddress.IPv4Network("10.77.0.0/16")


def bridge_name(instance: str) -> str:
    """This is the bridge's name, of an instance by that name."""
    return f"qv{hashlib.sha256(instance.encode()).hexdigest()[:_NAME_DIGITS]}"


def free_subnet(used: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """This is a subnet that none of those that the host knows of meets.

    Raises:
        BusNetworkFailed: there is none.
    """
    known = [network for network in used if network.prefixlen]  # the default route is everywhere
    for subnet in _CANDIDATES.subnets(new_prefix=24):
        if not any(subnet.overlaps(network) for network in known):
            return subnet
    raise BusNetworkFailed("ip route", f"the host uses all of {_CANDIDATES}")


def filter_rules(bridge: Bridge, port: int) -> str:
    """These are the rules for nft(8): ports of the bridge reach the broker, and nothing else passes.

    References: nft(8). A process of the host's own, as QEMU's user network is, reaches the bridge's address
    through ``lo``: rules by the bridge's interface alone do not see it.
    """
    name, address, subnet = bridge.name, bridge.address, bridge.subnet
    return f"""\
table inet {name} {{
  chain input {{
    type filter hook input priority -300; policy accept;
    iifname "{name}" ip saddr {subnet} ip daddr {address} tcp dport {port} accept
    iifname "{name}" drop
    ip daddr {subnet} drop
    ip saddr {subnet} drop
  }}
  chain forward {{
    type filter hook forward priority -300; policy accept;
    iifname "{name}" drop
    oifname "{name}" drop
    ip daddr {subnet} drop
  }}
  chain output {{
    type filter hook output priority -300; policy accept;
    oifname "{name}" ip saddr {address} tcp sport {port} accept
    oifname "{name}" drop
    ip daddr {subnet} drop
  }}
}}
"""


class HostBridge:
    """This is a bridge that stands; :func:`host_bridge` makes it."""

    def __init__(self, bridge: Bridge, holder: "Holder") -> None:
        self.bridge = bridge
        self.run = holder.run


class Holder:
    """This is the process that makes what is made, and removes it.

    Args:
        process: it, with its input and output.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._asking = asyncio.Lock()

    async def run(self, *command: str, text: str, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """This has the holder run a command.

        Raises:
            BusNetworkFailed: it failed, came to no end in time, or the holder is gone.
        """
        said = await self._said(command, text, timeout_s)
        if said:
            raise BusNetworkFailed(" ".join(command), said)

    async def claim(self, subnet: ipaddress.IPv4Network) -> bool:
        """This takes a subnet, unless another instance in this namespace has taken it.

        Raises:
            BusNetworkFailed: the holder is gone.
        """
        said = await self._said(("claim", str(subnet)), "", COMMAND_TIMEOUT_S)
        if said not in {"", TAKEN}:
            raise BusNetworkFailed("claim", said)
        return not said

    async def _said(self, command: Sequence[str], text: str, timeout_s: float) -> str:
        async with self._asking:
            number = next(self._numbers)
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._answer(number, command, text)
            except TimeoutError:
                raise BusNetworkFailed(" ".join(command), "came to no end") from None
            except OSError as error:
                raise BusNetworkFailed(
                    " ".join(command), f"its holder is gone: {error!r}"
                ) from error

    async def _answer(self, number: int, command: Sequence[str], text: str) -> str:
        """This is what the holder says to this command: what it still says to one given up is passed over."""
        streams = self._process.stdin, self._process.stdout
        assert streams[0] is not None  # noqa: S101 - it was asked for
        assert streams[1] is not None  # noqa: S101 - as above
        streams[0].write(json.dumps([number, command, text]).encode() + b"\n")
        await streams[0].drain()
        while line := await streams[1].readline():
            answered, said = json.loads(line)
            if answered == number:
                return str(said)
        return "its holder is gone"


@asynccontextmanager
async def host_bridge(instance: str, port: int) -> AsyncIterator[HostBridge]:
    """This makes a bridge with its filters in the namespace that this program is in, until the block ends.

    Raises:
        BusNetworkFailed: another instance of that name runs, or the host refuses.
    """
    name = bridge_name(instance)
    async with _holder(name) as holder:
        await holder.run("sweep", text="")
        bridge = Bridge(name, await _own_subnet(holder))
        # The filters stand before there is anything to filter.
        await holder.run("nft", "-f", "-", text=filter_rules(bridge, port))
        await holder.run("ip", "-batch", "-", text=bridge.words)
        await holder.run(
            "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{bridge.name}/disable_ipv6", text=""
        )
        yield HostBridge(bridge, holder)


@asynccontextmanager
async def _holder(bridge: str) -> AsyncIterator[Holder]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_HOLDER), bridge),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,  # ^C at a terminal is for its owner, who then ends it
    )
    try:
        yield Holder(process)
    finally:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.close()
        await process.wait()


async def _own_subnet(holder: Holder) -> ipaddress.IPv4Network:
    """This takes a subnet that the host does not use, which no other instance can take from then on.

    One that another instance has taken may have no route yet, and so looks free.
    """
    routes = json.loads(await run("ip", "-json", "-4", "route", "show", "table", "all"))
    used = [_network(route["dst"]) for route in routes if "dst" in route]
    while not await holder.claim(subnet := free_subnet(used)):
        used.append(subnet)
    return subnet


def _network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network("0.0.0.0/0" if text == "default" else text, strict=False)
