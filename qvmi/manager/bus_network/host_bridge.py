"""A bridge in the host's own network namespace, which is gone again whoever is killed.

Whatever is made, a process of its own makes (``holder.py``), and removes when its input ends, as it does when
this program is killed. Only where that process is killed too does something stay; the next bridge of that
name removes it.
"""

import asyncio
import hashlib
import ipaddress
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.bridge import Bridge
from qvmi.manager.bus_network.command import COMMAND_TIMEOUT_S, run

__all__ = ["HostBridge", "bridge_name", "filter_rules", "free_subnet", "host_bridge"]

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

    def __init__(self, bridge: Bridge, holder: Process) -> None:
        self.bridge = bridge
        self._holder = holder

    async def run(self, *command: str, text: str) -> None:
        """This has the holder run a command.

        Raises:
            BusNetworkFailed: it failed, or the holder is gone.
        """
        holder = self._holder
        assert holder.stdin is not None  # noqa: S101 - it was asked for
        assert holder.stdout is not None  # noqa: S101 - as above
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                holder.stdin.write(json.dumps([command, text]).encode() + b"\n")
                await holder.stdin.drain()
                answer = await holder.stdout.readline()
        except (OSError, TimeoutError) as error:
            raise BusNetworkFailed(" ".join(command), f"its holder is gone: {error!r}") from error
        said = json.loads(answer) if answer else "its holder is gone"
        if said:
            raise BusNetworkFailed(" ".join(command), said)


@asynccontextmanager
async def host_bridge(instance: str, port: int) -> AsyncIterator[HostBridge]:
    """This makes a bridge with its filters in the namespace that this program is in, until the block ends.

    Raises:
        BusNetworkFailed: another instance of that name runs, or the host refuses.
    """
    routes = json.loads(await run("ip", "-json", "-4", "route", "show", "table", "all"))
    used = [_network(route["dst"]) for route in routes if "dst" in route]
    bridge = Bridge(bridge_name(instance), free_subnet(used))
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_HOLDER), bridge.name),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,  # ^C at a terminal is for its owner, who then ends it
    )
    try:
        made = HostBridge(bridge, holder)
        await made.run("sweep", text="")
        # The filters stand before there is anything to filter.
        await made.run("nft", "-f", "-", text=filter_rules(bridge, port))
        await made.run("ip", "-batch", "-", text=bridge.words)
        await made.run(
            "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{bridge.name}/disable_ipv6", text=""
        )
        yield made
    finally:
        assert holder.stdin is not None  # noqa: S101 - it was asked for
        holder.stdin.close()
        await holder.wait()


def _network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network("0.0.0.0/0" if text == "default" else text, strict=False)
