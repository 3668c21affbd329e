"""The process of one codepack: ``python -m qvmi.manager.pack_program``, which the manager starts.

Its working folder is the codepack's own. Its orders come as the first line of standard input; when that
ends, the manager has ended, and so does this. Before any code of the codepack's runs, it gives up what
it is not to have, tries whether it could write guest RAM all the same, and says so on standard output.
"""

import asyncio
import io
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import MachineGone, QvmiError, UsageError
from qvmi.manager.capabilities import give_up_capabilities
from qvmi.manager.landlock import forbid_privileges, forbid_writing
from qvmi.manager.orders import MAX_LINE, Hello, Orders, read_line
from qvmi.manager.reopening import ways_to_connect, ways_to_write

__all__ = ["main"]

_DEVICES: Final = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/full"))
"""What programs open for writing without meaning anything by it."""


def main() -> int:
    """This runs the codepack until the machine is gone, and gives the exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # who looks for too long ends by it
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        # Unbuffered: what follows the first line is read by somebody else.
        orders = read_line(io.FileIO(sys.stdin.fileno(), closefd=False).readline(MAX_LINE), Orders)
        _confine(orders)
    except QvmiError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the manager reads it there
        return os.EX_CONFIG
    hello = Hello(_pid(), os.geteuid(), _ways_out(orders))
    sys.stdout.buffer.write(msgspec.json.encode(hello) + b"\n")
    sys.stdout.buffer.flush()
    return 0 if orders.probe else _run(orders)


def _confine(orders: Orders) -> None:
    """This gives up what the codepack is not to have.

    Raises:
        UsageError: it cannot be given up, or there is no folder to work in.
    """
    folder = Path.cwd()
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be used by uid {os.geteuid()}")
    if orders.memory_bytes is not None:
        # Not RLIMIT_AS, which counts the guest's RAM: that is mapped, and shared.
        resource.setrlimit(resource.RLIMIT_DATA, (orders.memory_bytes, orders.memory_bytes))
    give_up_capabilities()
    if orders.landlock:
        forbid_writing(but_below=(folder, *_DEVICES))
    else:
        forbid_privileges()


def _ways_out(orders: Orders) -> tuple[str, ...]:
    ways = ways_to_write(orders.descriptors, orders.writers)
    untried = [f"QEMU may have other sockets: {orders.unseen}"] if orders.unseen else []
    return (*ways, *ways_to_connect(orders.sockets), *untried)


def _pid() -> int:
    """This is how others number this process, which may live in a namespace of its own."""
    return int(Path("/proc/self").readlink().name)


def _run(orders: Orders) -> int:
    # Imported here, as most of it is of no use for a probe, which waits for it.
    from qvmi.manager.pack_session import run_pack  # noqa: PLC0415

    try:
        asyncio.run(run_pack(orders))
    except MachineGone:
        return 0
    except QvmiError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the manager reads it there
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
