"""Who holds up an event loop: a thread beside it notices, and says so while it lasts."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["HELD_UP_S", "loop_watched"]

HELD_UP_S: Final = 2.0
"""How long an event loop may stand still: a busy host gives no process more than some tenths to wait."""

_log: Final = logging.getLogger(__name__)


@contextmanager
def loop_watched(tell: Callable[[str], None]) -> Iterator[None]:
    """This watches the running event loop for as long as the block lasts.

    Whoever holds it up cannot be stopped by this, as they share a process; the log is told at once, and
    others when the loop goes on.

    Args:
        tell: is told on the loop, when it goes on, who held it up and for how long.
    """
    watch = _LoopWatch(asyncio.get_running_loop(), tell)
    thread = threading.Thread(target=watch.run, name="qvmi-loop-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.end.set()


class _LoopWatch:
    """This asks the loop for a sign of life, again and again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[str], None]) -> None:
        self.end = threading.Event()
        self._loop = loop
        self._tell = tell

    def run(self) -> None:
        while not self.end.wait(HELD_UP_S / 4):
            alive = threading.Event()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(alive.set)
                if alive.wait(HELD_UP_S):
                    continue
                task = asyncio.current_task(self._loop)
                who = "something else than a task" if task is None else f"task {task.get_name()}"
                _log.warning("the event loop stands still: %s has it, and nobody else runs", who)
                while not alive.wait(HELD_UP_S):
                    if self.end.is_set() or self._loop.is_closed():
                        return
                words = f"{who} held up everybody for {time.monotonic() - asked:.1f} s"
                self._loop.call_soon_threadsafe(self._tell, words)
            except RuntimeError:  # the loop is closed
                return
