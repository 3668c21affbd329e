"""The guests of one test, or of one module of tests."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.guests.lab import Guest, GuestConfig, Lab, MissingPartError

__all__ = ["GuestPool"]


@dataclass(frozen=True, slots=True)
class GuestPool:
    """This makes guests that live until the stack closes.

    A host without QEMU, a compiler or another program skips the test; whatever else goes wrong fails it.
    """

    lab: Lab
    stack: ExitStack

    def restore(self, config: GuestConfig, *, paused: bool = False) -> Guest:
        """This thaws a guest; see `Lab.restore`."""
        return self._entered(self.lab.restore(config, paused=paused))

    def boot(
        self,
        config: GuestConfig,
        *,
        until: Literal["ready", "started"] = "ready",
        paused: bool = False,
    ) -> Guest:
        """This boots a guest; see `Lab.boot`."""
        return self._entered(self.lab.boot(config, until=until, paused=paused))

    def _entered(self, making: AbstractContextManager[Guest]) -> Guest:
        try:
            return self.stack.enter_context(making)
        except MissingPartError as missing:
            pytest.skip(str(missing))
