"""Questions to the guest's process 1 over its second serial port, answered by JSON lines."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.guests.lab.errors import LabError

__all__ = ["Control", "GuestRefused", "Row"]

Row = dict[str, Any]

MAX_LINE = 1 << 20
"""A line of the guest's is at most a few KiB; more means that this is not our init."""


class GuestRefused(Exception):
    """This is the guest's init saying why it did not do what it was asked."""


@dataclass(slots=True)
class Control:
    """This is the host's end of the control port."""

    stream: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    number: int = 0

    def close(self) -> None:
        """This hangs up; the guest notices nothing."""
        self.stream.close()

    def wait_until_ready(self, *, deadline: float) -> None:
        """This returns when the guest says that its population is complete.

        Raises:
            LabError: it did not by the deadline, or QEMU ended.
        """
        while self._line(deadline).get("kind") != "ready":
            pass

    def ask(self, words: str, *, seconds: float) -> list[Row]:
        """This puts one request and is every line of its answer but the last.

        Raises:
            GuestRefused: the guest's init answered with an error.
            LabError: no whole answer came in time.
        """
        self.number += 1
        deadline = time.monotonic() + seconds
        self.stream.settimeout(seconds)
        self.stream.sendall(f"{self.number} {words}\n".encode("latin-1"))
        rows = list(self._answer(deadline))
        end = rows.pop()
        if not end["ok"]:
            raise GuestRefused(f"{words}: {end['error']}")
        return rows

    def _answer(self, deadline: float) -> Iterator[Row]:
        while True:
            row = self._line(deadline)
            if row.get("id") == self.number:
                yield row
                if row["kind"] == "end":
                    return

    def _line(self, deadline: float) -> Row:
        while (end := self.pending.find(b"\n")) < 0:
            if len(self.pending) > MAX_LINE:
                raise LabError("the guest's control port speaks no JSON", fix="boot it anew")
            self.stream.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self.stream.recv(1 << 16)
            except TimeoutError as error:
                raise LabError(
                    "the guest did not answer in time", fix="read console.log of the guest"
                ) from error
            if not received:
                raise LabError("QEMU ended", fix="read qemu.log and console.log of the guest")
            self.pending += received
        line = bytes(self.pending[:end])
        del self.pending[: end + 1]
        row: Row = json.loads(line)
        return row
