"""A hostile codepack: it finds the secret that its process was given, and floods the bus with it."""

import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qvmi.bus.account import Account
from qvmi.codepacks.codepack import Finding
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS
from tests.unit.bus.raw_mqtt import RawClient

if TYPE_CHECKING:
    from qvmi.manager.orders import Orders

__all__ = ["Flooding"]

AGAIN_S = 0.05
"""Until it comes again once it was hung up on."""


class Flooding:
    name = "flooding"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._orders = found("orders")
        threading.Thread(target=self._flood, daemon=True).start()

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del guest, memory
        return []

    def _flood(self) -> None:
        orders = self._orders
        account = Account(f"{orders.vm}.{self.name}.outbox", secret=orders.outbox_secret)
        topic = f"qvmi/v1/{orders.vm}/{self.name}/alert".encode()
        while True:
            # The outbox of its own process has the same account, and takes the connection over.
            with suppress(OSError, AssertionError, IndexError):
                raw = RawClient(Path(orders.socket), account)
                while True:
                    raw.publish(topic, b"{}")
            time.sleep(AGAIN_S)


def found(name: str) -> "Orders":
    """Finds what whoever has called this knows by a name: whoever shares a process with a secret has it."""
    frame = sys._getframe()  # noqa: SLF001 - as an attacker does
    while name not in frame.f_locals:
        assert frame.f_back is not None, name
        frame = frame.f_back
    return cast("Orders", frame.f_locals[name])
