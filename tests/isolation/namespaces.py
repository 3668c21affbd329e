"""Network namespaces as tests need them: a stand-in for the host, and ways into others."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.isolation.held_process import held, line_of

__all__ = ["GATEWAY", "USER_BRIDGE", "USER_TAP", "Inside", "stand_in_host"]

GATEWAY: Final = "10.88.0.1"
USER_BRIDGE: Final = "vmnet0"
USER_TAP: Final = "user0"

COMMAND_S: Final = 60.0

_SCRIPT: Final = f"""
set -e
ip link set lo up
ip link add {USER_BRIDGE} type bridge
ip address add {GATEWAY}/24 dev {USER_BRIDGE}
ip link set {USER_BRIDGE} up
ip tuntap add dev {USER_TAP} mode tap
ip link set {USER_TAP} master {USER_BRIDGE} up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo made
read held
"""
"""A careless host: it forwards, and its user VM's bridge has an address."""


@dataclass(frozen=True, slots=True)
class Inside:
    """This runs programs in the network namespace of a process, with the rights of the tests."""

    pid: int

    @property
    def enter(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    def run(self, *command: str) -> str:
        return subprocess.run(
            (*self.enter, *command), capture_output=True, text=True, check=True, timeout=COMMAND_S
        ).stdout

    def rows(self, *command: str) -> list[dict[str, Any]]:
        """This is what ``ip`` says as JSON."""
        said = self.run("ip", "-json", "-details", *command)
        rows: list[dict[str, Any]] = json.loads(said or "[]")
        return rows

    def links(self) -> set[str]:
        return {row["ifname"] for row in self.rows("link", "show")}


@contextmanager
def stand_in_host() -> Iterator[Inside]:
    """This is a network namespace in place of the host's own, with a bridge for the user VM."""
    command = ("unshare", "--net", "--", "sh", "-c", _SCRIPT)
    if subprocess.run(("unshare", "--net", "true"), capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces may be made here: run as root")
    with held(*command) as holder:
        assert line_of(holder) == "made"
        yield Inside(holder.pid)
