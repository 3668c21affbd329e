"""Runs a host's network tool to its end, with its words as the error when it fails."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from qvmi.errors import BusNetworkFailed

__all__ = ["COMMAND_TIMEOUT_S", "find", "run"]

COMMAND_TIMEOUT_S: Final = 20.0
"""Longest wait for a tool; they take milliseconds, and some tenths of a second on a loaded machine."""

_MAX_WORDS: Final = 1000
"""Characters of what a tool said that an error carries."""

_SYSTEM_FOLDERS: Final = ("/usr/sbin", "/sbin")
"""Where distributions install ip, bridge and nft, which are not in every user's PATH."""


def find(program: str) -> str | None:
    """This is the full path of a tool; None where there is none."""
    return shutil.which(program, path=_environment()["PATH"])


def _environment() -> dict[str, str]:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    return {**os.environ, "PATH": path, "LC_ALL": "C"}


async def run(*command: str, text: str = "") -> str:
    """This runs a command with a text as its input, and is what it printed.

    Raises:
        BusNetworkFailed: it is missing, failed, or came to no end; it does not run any more.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_environment()
        )
    except OSError as error:
        raise BusNetworkFailed(command[0], f"cannot be run: {error}") from error
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            printed, said = await process.communicate(text.encode())
    except TimeoutError:
        raise BusNetworkFailed(" ".join(command), "came to no end") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise BusNetworkFailed(_without_place(command), _last_words(said))
    return printed.decode("utf-8", "backslashreplace")


def _without_place(command: Sequence[str]) -> str:
    """This leaves out through which descriptors a namespace was entered: that explains nothing."""
    words = command[command.index("--") + 1 :] if "--" in command else command
    return " ".join(words)


def _last_words(said: bytes) -> str:
    words = said.decode("utf-8", "backslashreplace").strip()[-_MAX_WORDS:]
    return "; ".join(words.splitlines()) or "it said nothing"
