"""What a recording says of the QEMU it was made from: in its name, and in its first lines."""

from pathlib import Path
from typing import Any

from tests.guests.lab.qemu import DISTRIBUTION, chosen_name

__all__ = ["header_of", "recording_of"]

_FOLDER = Path(__file__).parent


def recording_of(name: str, version: dict[str, Any]) -> Path:
    """This is the file of a recording; a QEMU newer than the distribution's is in its name.

    Args:
        name: what was recorded.
        version: what ``query-version`` says.
    """
    numbers = version["qemu"]
    newer = chosen_name() != DISTRIBUTION
    return _FOLDER / f"{name}{'-{major}.{minor}'.format(**numbers) if newer else ''}.txt"


def header_of(shows: str, pid: int, version: dict[str, Any]) -> list[str]:
    """These are the lines that tell which QEMU it was, how it was started, and what is to be seen."""
    numbers = "{major}.{minor}.{micro}".format(**version["qemu"])
    return [f"# QEMU {numbers} ({version['package']})", f"# {_command_line(pid)}", f"# {shows}"]


def _command_line(pid: int) -> str:
    """This leaves out how a QEMU that is not installed is started, and where its firmware is."""
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    at = next(n for n, word in enumerate(words) if Path(word).name.startswith("qemu-system-"))
    options = iter(words[at + 1 :])
    kept = [word for word in options if word != "-L" or not next(options)]
    return " ".join([Path(words[at]).name, *kept])
