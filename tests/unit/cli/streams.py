"""Outputs whose other end a test holds."""

import io

from qvmi.cli.printing.output import Output

__all__ = ["Captured"]


class Captured(Output):
    """This keeps what was written.

    Attributes:
        stdout: takes the result; `stderr` the messages.
    """

    def __init__(self, *, json: bool = False, encoding: str = "utf-8") -> None:
        self.stdout = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
        self.stderr = io.TextIOWrapper(io.BytesIO(), "utf-8")
        super().__init__(self.stdout, self.stderr)
        self.json = json

    @property
    def result(self) -> str:
        """This is what stdout got."""
        return self.raw_result.decode(self.stdout.encoding)

    @property
    def raw_result(self) -> bytes:
        """These are the bytes that stdout got."""
        return _bytes(self.stdout)

    @property
    def messages(self) -> str:
        """This is what stderr got."""
        return _bytes(self.stderr).decode()


def _bytes(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue()
