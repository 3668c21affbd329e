"""Keeping one codepack's process running: started again when it fails, given up when that is no use."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from qvmi.errors import CodepackError, MachineGone
from qvmi.manager.pack_process import PackProcess
from qvmi.manager.pack_spec import PackSpec, Restart
from qvmi.manager.records import record

__all__ = ["MAX_RESTARTS", "Supervisor", "Watcher"]

MAX_RESTARTS: Final = 5
"""Ends in a row after which something is wrong that another start does not mend."""

STABLE_S: Final = 60.0
"""A process that ran for so long was well; its end does not count as one of a row."""

_FIRST_PAUSE_S: Final = 0.1

_log: Final = logging.getLogger(__name__)


class Watcher(Protocol):
    """This is who is told what becomes of a codepack's process."""

    async def began(self, spec: PackSpec, process: PackProcess) -> None:
        """This is told that it runs."""
        ...

    async def failed(self, spec: PackSpec, problem: str) -> None:
        """This is told that it has ended, and why."""
        ...

    async def is_machine_gone(self) -> bool:
        """This asks whether QEMU has ended."""
        ...


class Supervisor:
    """This keeps the process of one codepack running.

    Args:
        spec: the codepack.
        start: starts its process.
        watcher: is told what becomes of it.
        permitted: set while codepacks may run.
    """

    def __init__(
        self,
        spec: PackSpec,
        start: Callable[[PackSpec], Awaitable[PackProcess]],
        watcher: Watcher,
        permitted: asyncio.Event,
    ) -> None:
        self.process: PackProcess | None = None
        self._spec = spec
        self._start = start
        self._watcher = watcher
        self._permitted = permitted

    async def run(self) -> None:
        """This runs it until the machine is gone.

        Raises:
            CodepackError: it fails again and again, or is not to be started again.
            MachineGone: it ended as the machine had.
        """
        loop = asyncio.get_running_loop()
        ends = 0
        while True:
            await self._permitted.wait()
            began = loop.time()
            problem = await self._run_once()
            if not self._permitted.is_set():
                continue
            ends = 1 if loop.time() - began > STABLE_S else ends + 1
            await self._watcher.failed(self._spec, problem)
            if self._spec.restart is Restart.NEVER or ends > MAX_RESTARTS:
                raise CodepackError(self._spec.name, f"ended {ends} times in a row: {problem}")
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (ends - 1))

    def stop(self) -> None:
        """This kills the process that runs, as codepacks may not run any more."""
        if self.process is not None:
            self.process.kill()

    async def _run_once(self) -> str:
        """This runs it until it ends, and tells why it did."""
        try:
            process = self.process = await self._start(self._spec)
        except CodepackError as error:
            return error.problem
        try:
            await self._watcher.began(self._spec, process)
            code, words = await process.ended()
        finally:
            self.process = None
            await process.end()
        if code == 0 and await self._watcher.is_machine_gone():
            raise MachineGone("watch")
        record(
            "codepack %s: its process %d ended with %d: %s",
            self._spec.name,
            process.pid,
            code,
            words,
        )
        return f"its process ended with {code}: {words}"
