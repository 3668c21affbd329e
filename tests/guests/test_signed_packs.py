"""A signed codepack of somebody else's watches a real guest; an altered one does not run."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.command_line import QVMI, environment, qvmi
from tests.guests.lab import Guest
from tests.repository.tree import ROOT
from tests.unit.codepacks.signed_packs import MANIFEST, pack_folder

WAIT_S = 60
"""Longest wait for it to end; it takes a tenth of a second."""


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        (*QVMI, *arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_alert_of(codepack: str, lines: IO[str]) -> dict[str, object]:
    for line in lines:
        document: dict[str, object] = json.loads(line)
        if (document["kind"], document["codepack"]) == ("alert", codepack):
            return document
    raise AssertionError("it ended without an alert")


def signed(tmp_path: Path) -> tuple[Path, str]:
    manifest = MANIFEST.replace("[baseline]", "[management]\ninterval-s = 0.1\n\n[baseline]")
    folder, keys = pack_folder(tmp_path / "pack", manifest=manifest), str(tmp_path / "keys")
    for arguments in (
        ("keys", "new", "alice"),
        ("keys", "trust", f"{keys}/own/alice.pub"),
        ("pack", "sign", str(folder), "--key", "alice"),
    ):
        assert qvmi(*arguments, "--keys", keys).returncode == 0
    return folder, keys


def test_a_signed_codepack_of_somebody_elses_finds_what_the_guest_itself_shows(
    guest: Guest, tmp_path: Path
) -> None:
    folder, keys = signed(tmp_path)
    [init] = [task for task in guest.truth().processes if task.pid == 1]
    watch = ("watch", "--load", str(folder), "--keys", keys, "--json")
    log = str(tmp_path / "audit.log")
    with running("--qmp", guest.qmp, "--audit", log, *watch) as process:
        assert process.stdout is not None
        alert = first_alert_of("watch-init", process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(WAIT_S) == 1
    body = alert["body"]
    assert isinstance(body, dict)
    assert body["finding"]["claim"] == f"{init.name.decode()} runs"
    assert "watch-init 1.2.0, signed by key" in Path(log).read_text()


def test_an_altered_codepack_does_not_watch_and_the_audit_log_tells(
    guest: Guest, tmp_path: Path
) -> None:
    folder, keys = signed(tmp_path)
    (folder / "lazy.py").write_text("severity = 'critical'\n")
    log = str(tmp_path / "audit.log")
    watch = ("watch", "--load", str(folder), "--keys", keys, "--for", "60")
    done = qvmi("--qmp", guest.qmp, "--audit", log, *watch)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith("it is not as it was signed: lazy.py altered\n")
    assert qvmi("audit", "verify", log).returncode == 0
    assert "refused: codepack watch-init" in Path(log).read_text()
