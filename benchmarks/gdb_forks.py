"""What a gdb at a breakpoint sees of a guest's forks: the peer of the watching of memory, told as it happens.

This is run by gdb's own Python, in gdb: FORKS names a JSON file of where things are, and where to write to.
"""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import gdb  # type: ignore[import-untyped] # gdb's own

told = json.loads(Path(os.environ["FORKS"]).read_text())


class Fork(gdb.Breakpoint):  # type: ignore[misc] # gdb has no types
    """This stands where each new task passes, before it runs."""

    rows: list[tuple[float, int, int, float]] = []  # noqa: RUF012 - gdb makes one of it

    def stop(self) -> bool:
        """This notes what is new, and lets the guest run on."""
        began = time.time()
        task = int(gdb.parse_and_eval("$rdi")) % (1 << 64)
        pid, tgid, start = (self.read(task + told[name], size) for name, size in NAMES)
        self.rows.append((began, pid, tgid, start / 1e9))
        return False

    @staticmethod
    def read(address: int, size: int) -> int:
        """This reads a number."""
        data: Any = gdb.selected_inferior().read_memory(address, size)
        number: int = struct.unpack("<I" if size == 4 else "<Q", bytes(data))[0]  # noqa: PLR2004 - bytes
        return number


NAMES = (("pid", 4), ("tgid", 4), ("start", 8))
Fork(f"*{told['place']}")
Path(told["ready"]).touch()
gdb.execute("continue")
Path(told["rows"]).write_text(json.dumps(Fork.rows))
gdb.execute("detach")
