"""What the steps of one run share: why it is run, what it holds, and where its files lie."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qvmi.codepacks.alert import Alert
from qvmi.errors import UsageError
from qvmi.manager.response.records import Record
from qvmi.manager.response.stillness import Stillness
from qvmi.semantics.guest_os import GuestOS

__all__ = ["ReportMaker", "Scene", "Story"]

_PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class Story:
    """This is what a report tells beside how the guest is.

    Args:
        title: of the report.
        alerts: what led to the run.
        records: what was done so far.
        files: names of the files beside the report.
        unseen: why the guest is not in it; empty where it is.
    """

    title: str
    alerts: tuple[Alert, ...]
    records: tuple[Record, ...]
    files: tuple[str, ...]
    unseen: str = ""


ReportMaker = Callable[[GuestOS | None, Story], str]
"""Makes a page of HTML of a guest, where one is understood, and of a story."""


@dataclass(slots=True)
class Scene:
    """This is one run, for its steps.

    Args:
        run: its name.
        vm: the machine's name on the bus.
        playbook: the playbook's name.
        alerts: what led to it.
        place: the folder that the playbook keeps evidence in; empty for none.
        stillness: the run's pauses.
        records: what was told of it so far.
    """

    run: str
    vm: str
    playbook: str
    alerts: tuple[Alert, ...]
    place: str
    stillness: Stillness
    records: list[Record] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """This is where the run's files are."""
        return Path(self.place) / self.run

    def make_folder(self) -> Path:
        """This makes the folder of the run's files, which nobody else may enter.

        Raises:
            UsageError: it cannot be made, or is a link.
        """
        folder = self.folder
        try:
            folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            linked = folder.is_symlink()
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
        if linked:
            raise UsageError(f"{folder} is a symbolic link: name the folder itself")
        return folder

    def files(self) -> tuple[str, ...]:
        """These are the names of the run's files so far.

        Raises:
            UsageError: its folder cannot be read.
        """
        try:
            return tuple(sorted(path.name for path in self.folder.iterdir()))
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be read: {error.strerror}") from error
