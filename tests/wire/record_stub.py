"""Records the gdbstub's transcripts anew, from the QEMU that is chosen: ``python -m tests.wire.record_stub``.

A newer one is chosen as for `tests.wire.record`.
"""

import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.stub_machines import counting_machine, stub_of
from tests.wire.recorded_qemu import header_of, recording_of

_ANSWERS_S = 0.2  # QEMU answers within a millisecond; some requests are answered twice
_PART = 1024
_AARCH64 = ("-machine", "virt", "-cpu", "max", "-smp", "2", "-m", "64", "-S")
_REQUESTS = (
    b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+",
    b"Qqemu.PhyMemMode:0",
    b"?",
    b"qRcmd,696e666f2076657273696f6e",
    b"qC",
    b"qAttached",
    b"qfThreadInfo",
    b"qsThreadInfo",
    b"qsThreadInfo",
    b"vCont?",
    b"qThreadExtraInfo,p1.1",
    b"p0",
    b"QStartNoAckMode",
    b"bogus",
)
_AFTER_THE_DESCRIPTION = (
    *(b"p0", b"pfff", b"Hg0", b"Hgp1.9", b"Hgp1.2", b"Hgp1.1", b"g"),
    *(b"m100025,4", b"mffffffffffff0000,8", b"m0,801"),
    *(b"Qqemu.PhyMemMode:1", b"m0,8", b"Z0,100025,1", b"z0,100025,1", b"z0,100025,1", b"D", b"D;1"),
)


def main() -> None:
    """This records both architectures."""
    with counting_machine("-smp", "2") as machine:
        _record(
            "stub_x86_64", "q35, 32-bit code that counts, running when the client came", machine
        )
    with bare_qemu(*_AARCH64, program="qemu-system-aarch64") as machine:
        _record("stub_aarch64", "virt, 2 vCPUs of the model max that have not begun", machine)


def _record(name: str, shows: str, machine: BareQemu) -> None:
    version = machine.monitor.execute("query-version")
    lines = header_of(shows, machine.pid, version)
    with _Conversation.opened(stub_of(machine)) as stub:
        lines += [f"S: {body!r}" for body in stub.heard()]
        for request in _REQUESTS:
            lines += stub.lines(request)
        documents = ["target.xml"]
        while documents:
            for request, said in stub.document(documents.pop(0)):
                lines += [f"C: {request!r}", f"S: {said!r}"]
                documents += re.findall(r'href="([^"]+)"', said.decode())
        for request in _AFTER_THE_DESCRIPTION:
            lines += stub.lines(request)
    text = "\n".join(lines).replace(str(machine.folder), "/run/vm")
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/qvmi-\w+", "/run/guest", text)
    recording_of(name, version).write_text(text + "\n")


class _Conversation:
    """This is a client of the stub that shares no code with qvmi's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def opened(cls, path: str) -> Iterator["_Conversation"]:
        """This connects for the length of the block."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.settimeout(_ANSWERS_S)
            yield cls(connection)

    def heard(self) -> list[bytes]:
        """These are the bodies that come until nothing more does."""
        data = b""
        while True:
            try:
                data += self._connection.recv(1 << 16)
            except TimeoutError:
                break
        return re.findall(rb"\$([^#]*)#[0-9a-f]{2}", data)

    def ask(self, request: bytes) -> list[bytes]:
        """These are the packets that a request is answered with."""
        self._connection.sendall(b"$%b#%02x" % (request, sum(request) & 255))
        return self.heard()

    def lines(self, request: bytes) -> list[str]:
        """These are a request and its answers, as they are kept."""
        return [f"C: {request!r}", *(f"S: {body!r}" for body in self.ask(request))]

    def document(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """These are the requests for the parts of a document, each with its answer."""
        at = 0
        while True:
            request = f"qXfer:features:read:{name}:{at:x},{_PART:x}".encode()
            (said,) = self.ask(request)
            yield request, said
            if said[:1] != b"m":
                return
            at += _PART


if __name__ == "__main__":
    main()
