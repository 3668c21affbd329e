"""QEMU's gdbstub: the remote serial protocol without I/O, and an asyncio client of it."""
