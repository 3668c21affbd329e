"""Guests made by hand, from the manuals and the kernel's sources, for tests that need no QEMU.

This room shares no code with qvmi but the address types and the protocol of memory, so that what it
wrote can be the oracle for what qvmi reads.
"""
