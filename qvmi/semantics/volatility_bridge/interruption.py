"""Ending a plugin from another thread: whatever it does, it reads, and each read asks whether to go on."""

__all__ = ["Interrupted", "Interruption"]


class Interrupted(BaseException):
    """The plugin was told to end.

    No plugin may take it for an error of its own, and many catch every ``Exception``.
    """


class Interruption:
    """This tells one plugin run to end."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """This asks the plugin to end, from any thread."""
        self._asked = True

    def check(self) -> None:
        """This is called wherever the plugin reads.

        Raises:
            Interrupted: it was asked to end.
        """
        if self._asked:
            raise Interrupted
