"""Keeping one codepack's process running: started again when it fails, given up when that is no use."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Never, Protocol

from qvmi.codepacks.manifest import Restart
from qvmi.errors import CodepackError, MachineGone, UsageError
from qvmi.manager.pack_process import PackProcess
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.records import record

__all__ = ["Supervisor", "Watcher"]

STABLE_S: Final = 60.0
"""A process that ran for so long was well; its end does not count as one of a row."""

_FIRST_PAUSE_S: Final = 0.1

_MAX_DOUBLINGS: Final = 9
"""How often the time until the next start is doubled, to 51 s: by the twentieth it would be hours."""

_log: Final = logging.getLogger(__name__)


class Watcher(Protocol):
    """This is who is told what becomes of a codepack's process."""

    async def began(self, spec: PackSpec, process: PackProcess) -> None:
        """This is told that it runs."""
        ...

    async def failed(self, spec: PackSpec, problem: str) -> None:
        """This is told that it has ended, and why."""
        ...

    async def stopped(self, spec: PackSpec) -> None:
        """This is told that it has ended, as codepacks may not run just now."""
        ...

    async def given_up(self, spec: PackSpec) -> None:
        """This is told that it is not started again."""
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
        self._let_in = asyncio.Event()
        self._let_in.set()
        self._why_out = ""
        self._is_forbidden = False

    async def run(self) -> None:
        """This runs it until the machine is gone.

        Raises:
            CodepackError: it fails again and again, or is not to be started again.
            MachineGone: it ended as the machine had.
        """
        try:
            await self._run_on()
        except (CodepackError, MachineGone):
            await self._watcher.given_up(self._spec)
            raise

    async def _run_on(self) -> Never:
        """This starts it whenever it is to be started."""
        loop = asyncio.get_running_loop()
        ends = 0
        while True:
            await self._let_in.wait()
            await self._permitted.wait()
            self._is_forbidden = False
            began = loop.time()
            end = await self._run_once()
            if self._is_forbidden:
                await self._watcher.stopped(self._spec)
                continue
            problem = end.problem if self._let_in.is_set() else self._why_out
            ends = 1 if loop.time() - began > STABLE_S else ends + 1
            await self._watcher.failed(self._spec, problem)
            if ends > self._spec.max_restarts or not _RESTARTS[self._spec.restart](end):
                raise CodepackError(self._spec.name, f"ended {ends} times in a row: {problem}")
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** min(ends - 1, _MAX_DOUBLINGS))

    def stop(self) -> None:
        """This kills the process that runs or is being started, as codepacks may not run any more."""
        self._is_forbidden = True
        self._kill()

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def put_out(self, why: str) -> None:
        """This kills the process that runs, as its codepack is put out of the bus; it counts as failed."""
        self._why_out = why
        self._let_in.clear()
        self._kill()

    def let_in(self) -> None:
        """This lets it be started again."""
        self._let_in.set()

    async def _run_once(self) -> "_End":
        """This runs it until it ends, and tells how it did."""
        try:
            process = self.process = await self._start(self._spec)
        except CodepackError as error:
            return _End(error.problem)
        except UsageError as error:  # of its folder, which it may have made useless itself
            return _End(str(error))
        try:
            if self._is_forbidden or not self._let_in.is_set():  # since it was begun to be started
                process.kill()
            else:
                await self._watcher.began(self._spec, process)
            code, words = await process.ended()
        finally:
            self.process = None
            await process.end()
        if code == 0 and await self._watcher.is_machine_gone():
            raise MachineGone("watch")
        if code == -signal.SIGALRM:
            words = f"its code did not finish in time: a look may take {self._spec.look_s:g} s"
        name = self._spec.name
        record("codepack %s: its process %d ended with %d: %s", name, process.pid, code, words)
        return _End(f"its process ended with {code}: {words}", failed=code != 0)


@dataclass(frozen=True, slots=True)
class _End:
    """This is how a process ended: why, and whether that was a failure."""

    problem: str
    failed: bool = True


_RESTARTS: Final[Mapping[Restart, Callable[[_End], bool]]] = {
    Restart.ALWAYS: lambda _: True,
    Restart.ON_FAILURE: lambda end: end.failed,
    Restart.NEVER: lambda _: False,
}
"""Whether a process is started again that has ended in some way."""
