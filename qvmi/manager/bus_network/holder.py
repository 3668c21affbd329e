"""A program that makes a bridge in the host's namespace, and removes it when its input ends.

It is run by path, ``python -I -S holder.py BRIDGE``, so it imports nothing of qvmi. Each line of its input is
a numbered command, ``[7, ["ip", "-batch", "-"], "TEXT FOR IT"]``, and each line of its output says of which
number what went wrong: ``[7, ""]`` for nothing. ``["sweep"]`` takes the name, and removes what a dead holder
of it has left; ``["claim", "10.77.0.0/24"]`` takes a subnet that no other holder has.

References: ip-link(8); nft(8); unix(7), abstract names, which are each network namespace's own.
"""

import json
import os
import signal
import socket
import subprocess
import sys

COMMAND_TIMEOUT_S = 15.0
"""Shorter than its owner's patience, so that the owner is told."""

MARK = "qvmi bus network"
"""The alias of a bridge that is ours to remove (``Bridge.words``)."""

TAKEN = "taken"
"""What is said of a subnet that another holder has."""

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def call(command: list[str], text: str) -> str:
    """This runs a command, and is what went wrong."""
    try:
        done = start(command, text)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    said = done.stderr.decode(errors="backslashreplace").strip()
    return "" if done.returncode == 0 else said or f"exit status {done.returncode}"


def printed(command: list[str]) -> bytes:
    """This runs a command, and is what it printed; nothing when it failed."""
    try:
        return start(command, "").stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def start(command: list[str], text: str) -> "subprocess.CompletedProcess[bytes]":
    """This runs a command to its end."""
    environment = {"PATH": os.environ.get("PATH", "") + ":" + SYSTEM_PATH, "LC_ALL": "C"}
    return subprocess.run(  # noqa: S603 - its owner's words
        command,
        input=text.encode(),
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
        env=environment,
        check=False,
    )


def take_name(name: str) -> "socket.socket | None":
    """This holds a name within this network namespace until this program ends; None where it is taken."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0qvmi-bridge-{name}")
    except OSError:
        held.close()
        return None
    return held


def remove(bridge: str) -> None:
    """This removes the bridge that bears our mark, its taps, and its filters last."""
    rows = json.loads(printed(["ip", "-json", "link", "show"]) or "[]")
    if any(row["ifname"] == bridge and row.get("ifalias") == MARK for row in rows):
        for row in rows:
            # A foreign interface that somebody made a port of it is let go of, no more.
            if row.get("master") == bridge and row["ifname"].startswith(f"{bridge}t"):
                call(["ip", "link", "delete", row["ifname"]], "")
        call(["ip", "link", "delete", bridge], "")
    call(["nft", "delete", "table", "inet", bridge], "")


class Holder:
    """This obeys one owner.

    Attributes:
        held: the names that are taken; the bridge's own is the first.
    """

    def __init__(self, bridge: str) -> None:
        self.bridge = bridge
        self.held: list[socket.socket] = []

    def obey(self, command: list[str], text: str) -> str:
        """This carries out a command, and is what went wrong."""
        if command == ["sweep"]:
            if not self.take(self.bridge):
                return "another instance of that name runs"
            remove(self.bridge)
            return ""
        if command[0] == "claim":
            return "" if self.take(command[1]) else TAKEN
        return call(command, text)

    def take(self, name: str) -> bool:
        """This takes a name until this program ends, and tells whether it could be had."""
        taken = take_name(name)
        if taken:
            self.held.append(taken)
        return taken is not None


def main(arguments: list[str]) -> None:
    """This obeys until its input ends."""
    (bridge,) = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    holder = Holder(bridge)
    for line in sys.stdin:
        asked, command, text = json.loads(line)
        try:
            sys.stdout.write(json.dumps([asked, holder.obey(command, text)]) + "\n")
            sys.stdout.flush()
        except OSError:
            break
    if holder.held:
        remove(bridge)


if __name__ == "__main__":
    main(sys.argv[1:])
