"""Rows about the kernel's log."""

import msgspec

__all__ = ["LogRecord"]


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """This is one record of the kernel's log.

    Args:
        sequence: its number since boot.
        time_s: seconds after the guest's boot.
        level: 0 for an emergency, up to 7 for debugging.
        facility: who speaks, by syslog's numbers: 0 the kernel.
        text: without a line end; may have several lines. It is the guest's word.
        subsystem: such as ``pci``; empty where the record is of no device.
        device: such as ``+pci:0000:00:01.0``; empty likewise.
    """

    sequence: int
    time_s: float
    level: int
    facility: int
    text: str
    subsystem: str
    device: str
