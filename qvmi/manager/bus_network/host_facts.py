"""What this host can do for a bus network, found out by trying each way once and leaving nothing of it."""

import os
from typing import Final

from qvmi.errors import BusNetworkFailed
from qvmi.manager.bus_network.bridge import BRIDGE, Bridge
from qvmi.manager.bus_network.command import find, run
from qvmi.manager.bus_network.level import HostFacts, Way
from qvmi.manager.bus_network.namespace import unshare_command

__all__ = ["look_at_host"]

_TOOLS: Final = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "bridge": "iproute2",
}

_TRIAL: Final = ("ip", "-batch", "-")


async def look_at_host(qemu: str = "qemu-system-x86_64") -> HostFacts:
    """This tries every way to a bus network.

    Args:
        qemu: the program that service VMs run on.
    """
    found = {
        Way.ROOTLESS: await _namespace_obstacle(rootless=True),
        Way.ROOT: await _namespace_obstacle(rootless=False),
        Way.GUESTFWD: await _forwarding_obstacle(qemu),
        Way.HOST_BRIDGE: await _host_bridge_obstacle(),
    }
    return HostFacts({way: obstacle for way, obstacle in found.items() if obstacle})


async def _namespace_obstacle(*, rootless: bool) -> str:
    """This makes bridge and port in a namespace that ends with the command."""
    if missing := _missing_tools():
        return missing
    bridge = Bridge()
    words = bridge.words + bridge.port_words(bridge.port(0))
    try:
        await run(*unshare_command(rootless=rootless), *_TRIAL, text=words)
    except BusNetworkFailed as failure:
        return f"{failure.said} ({_fix(rootless=rootless)})"
    return ""


async def _forwarding_obstacle(qemu: str) -> str:
    try:
        backends = await run(qemu, "-netdev", "help")
    except BusNetworkFailed as failure:
        return f"{qemu} {failure.said}"
    if "user" not in backends.split():
        return f"{qemu} was built without user networking"
    return ""


async def _host_bridge_obstacle() -> str:
    """This tries in a namespace what would be done on the host: nothing of the host's is touched."""
    if os.geteuid() != 0:
        return "it takes root"
    if missing := _missing_tools():
        return missing
    if find("nft") is None:
        return "nft is missing: install nftables"
    rules = f"table inet {BRIDGE} {{ chain input {{ type filter hook input priority 0; }}; }}"
    try:
        await run(*unshare_command(rootless=False), "nft", "-f", "-", text=rules)
    except BusNetworkFailed as failure:
        return failure.said
    return ""


def _missing_tools() -> str:
    missing = [tool for tool in _TOOLS if find(tool) is None]
    packages = " ".join(sorted({_TOOLS[tool] for tool in missing}))
    return f"{', '.join(missing)} missing: install {packages}" if missing else ""


def _fix(*, rootless: bool) -> str:
    if not rootless:
        return "run qvmi as root"
    return (
        "allow user namespaces, and let this user open /dev/net/tun: sysctls user.max_user_namespaces, "
        "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
    )
