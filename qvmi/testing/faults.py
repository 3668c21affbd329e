"""Armed faults: what a fake raises at the next call, because a test says so."""

from collections import deque
from collections.abc import Iterable

from qvmi.errors import UsageError

__all__ = ["Faults"]


class Faults:
    """This holds errors that wait to be raised by a method, each once.

    Raises:
        UsageError: there is no such method.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        self._armed: dict[str, deque[Exception]] = {method: deque() for method in methods}

    def arm(self, method: str, error: Exception) -> None:
        """This lets the next call of a method raise the error."""
        if method not in self._armed:
            raise UsageError(f"no method {method!r}; there are {', '.join(self._armed)}")
        self._armed[method].append(error)

    def go_off(self, method: str) -> None:
        """This raises the first error that waits for this method, if one does."""
        if self._armed[method]:
            raise self._armed[method].popleft()
