"""A guest with a NIC and a disk, and a watch of it that acts: what the tests of responses share."""

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.command_line import QVMI, environment
from tests.guests.lab import Guest, GuestConfig
from tests.guests.network_card import plug_card
from tests.repository.tree import ROOT

__all__ = ["CONFIG", "Acting", "acting", "documented", "plugged", "process_of", "snapshots"]

CONFIG: Final = GuestConfig("6.1", "pc")
"""NICs and disks can be plugged into this machine while it runs."""


def plugged(guest: Guest, folder: Path) -> Path:
    """This plugs in a NIC and a disk whose image keeps snapshots, and gives the image."""
    image = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True)
    plug_card(guest)
    monitor = guest.monitor
    monitor.execute(
        "blockdev-add",
        driver="qcow2",
        **{"node-name": "disk0", "file": {"driver": "file", "filename": str(image)}},
    )
    monitor.execute("device_add", driver="virtio-blk-pci", drive="disk0", id="disk")
    return image


def snapshots(image: Path) -> list[str]:
    """These are the names of the snapshots in an image, by qemu-img."""
    command = ["qemu-img", "info", "-U", "--output", "json", str(image)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [one["name"] for one in told.get("snapshots", ())]


def documented(folder: Path) -> tuple[Path, Path]:
    """These are the playbook and the policy of docs/response.md, with evidence in another folder."""
    book, policy = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "docs/response.md").read_text(), re.MULTILINE | re.DOTALL
    )
    places = folder / "book.toml", folder / "policy.toml"
    assert "/var/lib/qvmi/evidence" in book
    places[0].write_text(book.replace("/var/lib/qvmi/evidence", str(folder / "evidence")))
    places[1].write_text(policy)
    return places


def process_of(codepack: str, state: Path) -> int:
    """This is the process of a codepack, by the kernel's account: what runs one in its folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            place = (entry / "cwd").readlink()
            if place.name == codepack and place.is_relative_to(state):
                found += [int(entry.name)] * (words[4:5] == [b"qvmi.manager.pack_program"])
    (pid,) = found
    return pid


@dataclass(slots=True)
class Acting:
    """This is a watch that runs."""

    process: "subprocess.Popen[str]"
    errors: IO[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """This reads what the watch says until it says what is wanted."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            if wanted(self.said[-1]):
                return self.said[-1]
        raise AssertionError(f"the watch ended: {self.said} {self.messages}")

    def until_step(self, number: int) -> dict[str, Any]:
        """This reads until a step is told of."""
        message = self.until(
            lambda one: one["kind"] == "response" and one["body"]["step"] == number
        )
        body: dict[str, Any] = message["body"]
        return body

    @property
    def messages(self) -> list[str]:
        """These are the lines that it has written for people so far."""
        self.errors.seek(0)
        return self.errors.read().splitlines()

    @property
    def sighted(self) -> set[str]:
        """These are the codepacks that have told that they see everything."""
        told = (one for one in self.said if one["kind"] == "status")
        return {one["codepack"] for one in told if one["body"]["sight"] == "full"}

    @property
    def steps(self) -> list[tuple[str, str]]:
        """These are the steps that were told of, each with what became of it."""
        bodies = (one["body"] for one in self.said if one["kind"] == "response")
        return [(one["word"], one["outcome"]) for one in bodies if one["step"]]


@contextmanager
def acting(guest: Guest, *words: str) -> Iterator[Acting]:
    """This watches with ``--json`` for as long as the block lasts, and ends it by Ctrl-C."""
    command = (*QVMI, "--qmp", guest.qmp, "--json", "watch", "--interval", "0.2", *words)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            watch = Acting(process, errors)
            watch.until(lambda one: one["kind"] == "status" and one["body"]["sight"] == "full")
            yield watch
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=100)
