"""The lab's own way to talk to QEMU: a small QMP client on a monitor that the subject under test never sees.

References: docs/interop/qmp-spec.txt in QEMU's source.
"""

import json
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.guests.lab.errors import LabError

__all__ = ["Monitor", "MonitorError"]

ANSWER_SECONDS = 60.0
"""Longer than any command of the lab takes on a loaded machine."""

KEPT_EVENTS = 1024
"""Events kept for `wait_for_event`; older ones are forgotten."""


class MonitorError(Exception):
    """This is an error QEMU answered with."""


@dataclass(slots=True)
class Monitor:
    """This asks one QEMU one thing at a time.

    Attributes:
        events: what QEMU told unasked, oldest first.
    """

    stream: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))

    @classmethod
    def over(cls, stream: socket.socket) -> Self:
        """This takes QEMU's greeting on a fresh connection and answers it."""
        monitor = cls(stream)
        monitor._read()
        monitor.execute("qmp_capabilities")
        return monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """This hangs up."""
        self.stream.close()

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - QMP answers with any JSON
        """This runs a command and is what it returned.

        Raises:
            MonitorError: QEMU refused.
            LabError: QEMU is gone or silent.
        """
        request = {"execute": command, "arguments": arguments}
        try:
            self.stream.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _gone() from error
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise MonitorError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def human(self, line: str) -> str:
        """This runs a command of the human monitor, as ``info mtree -f``."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def running(self) -> bool:
        """Tell whether the guest's vCPUs run."""
        return bool(self.execute("query-status")["running"])

    def wait_for_event(self, name: str, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """This is the next event of that name that was not waited for yet."""
        deadline = time.monotonic() + seconds
        while True:
            while self.events:
                event = self.events.popleft()
                if event["event"] == name:
                    return event
            self.events.append(self._read(seconds=deadline - time.monotonic()))

    def _read(self, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self.pending:
            self.stream.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self.stream.recv(1 << 16)
            except OSError as error:
                raise _gone() from error
            if not received:
                raise _gone()
            self.pending += received
        line, _, rest = bytes(self.pending).partition(b"\n")
        self.pending[:] = rest
        answer: dict[str, Any] = json.loads(line)
        return answer


def _gone() -> LabError:
    return LabError("QEMU hung up or is silent", fix="read qemu.log and console.log of the guest")
