"""What a command is, as data."""

from argparse import ArgumentParser
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Command", "Needs"]


class Needs(StrEnum):
    """This is what a command works on."""

    GUEST = "guest"
    """A machine, and the system that runs in it."""
    MACHINE = "machine"
    """A machine, whatever runs in it."""
    CODE = "code"
    """A guest, asked by a user's own code, which runs here while the session goes on beside it."""
    MONITOR = "monitor"
    """A machine's QEMU alone: nothing of its memory is looked at."""
    HOST = "host"
    """This host alone."""
    SYSTEM = "system"
    """This host, and a machine on it if one is named."""
    NOTHING = "nothing"


# dataclasses would cost a quarter of the time that `qvmi --version` may take.
class Command(NamedTuple):
    """This is one command.

    Args:
        name: as it is typed.
        summary: one line, for the list of commands.
        details: what else there is to know, for the command's own help.
        examples: command lines, each with what it is for.
        needs: what it works on.
        handler: the function that runs it, as ``module:function``: imported only then.
        declare: adds its own arguments; their names are those of the handler's parameters.
        prepare: the function, named as the handler is, that makes the handler's parameters of the
            arguments and of what the parser does not know; empty where they are the same.
        why_no_dump: why a dump cannot be asked for that; empty where it can.
        not_behind: options of every command that stand only before this one, which has others of
            that name.
        late: its argument that may be left out, and still stand behind options: there the parser does
            not look for it.
        grants: what it may do beyond looking, which whoever types it has asked for.
        on_guest: values of its argument ``action`` that ask a guest or a dump, each with what runs it
            instead.
    """

    name: str
    summary: str
    details: str
    examples: tuple[tuple[str, str], ...]
    needs: Needs
    handler: str
    declare: Callable[[ArgumentParser], None]
    prepare: str = ""
    why_no_dump: str = "it needs a machine that runs"
    not_behind: tuple[str, ...] = ()
    late: str = ""
    grants: tuple[str, ...] = ()
    on_guest: tuple[tuple[str, str], ...] = ()

    def as_asked(self, action: object) -> "Command":
        """This is the command as it is run for an action of its own, if it has any."""
        for name, handler in self.on_guest:
            if name == action:
                return self._replace(needs=Needs.GUEST, handler=handler, why_no_dump="")
        return self
