"""Folders of codepacks for tests, and keys to sign them with."""

from dataclasses import dataclass
from pathlib import Path

from qvmi.codepacks.packaging.key_ring import KeyRing
from qvmi.codepacks.packaging.pack_folder import SIGNATURE_FILE, PackFolder
from qvmi.codepacks.packaging.pack_signature import VerifiedPack, sign, verify

__all__ = ["CODE", "MANIFEST", "NOW", "Workshop", "pack_folder"]

NOW = 1_800_000_000.0

MANIFEST = """\
manifest = 1
name = "watch-init"
version = "1.2.0"
entry = "detector:WatchInit"
grants = ["read-memory"]

[baseline]
pid = 1
"""

CODE = """\
from .rules import said
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.policy import Grant


class WatchInit:
    name = "watch-init"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, *, interval_s, pid):
        self.interval_s = interval_s
        self.pid = pid

    def inspect(self, guest, memory):
        from .lazy import severity

        for process in guest.processes():
            if process.pid == self.pid:
                yield Finding(
                    claim=said(process),
                    severity=Severity(severity),
                    technique="T1057",
                    key=f"pid {process.pid}",
                    evidence=(Observation(view="init_task.tasks", present=True),),
                )
"""


def pack_folder(path: Path, *, manifest: str = MANIFEST, code: str = CODE) -> Path:
    """Writes the folder of a codepack that finds one process."""
    (path / "data").mkdir(parents=True)
    (path / "codepack.toml").write_text(manifest)
    (path / "detector.py").write_text(code)
    (path / "rules.py").write_text("def said(process):\n    return f'{process.name} runs'\n")
    (path / "lazy.py").write_text("severity = 'low'\n")
    (path / "data" / "words.txt").write_text("one\n")
    return path


@dataclass
class Workshop:
    """A folder of keys, one of them trusted, and a signed codepack."""

    ring: KeyRing
    folder: Path

    @classmethod
    def at(cls, path: Path, **pack: str) -> "Workshop":
        workshop = cls(KeyRing(path / "keys"), pack_folder(path / "pack", **pack))
        workshop.ring.new("alice")
        workshop.ring.trust(path / "keys" / "own" / "alice.pub")
        workshop.sign()
        return workshop

    def sign(self, *, key: str = "alice", valid_s: float | None = None) -> None:
        data = sign(
            PackFolder.read(self.folder), self.ring.signing_key(key), now=NOW, valid_s=valid_s
        )
        (self.folder / SIGNATURE_FILE).write_bytes(data)

    def verify(self, *, now: float = NOW) -> VerifiedPack:
        return verify(PackFolder.read(self.folder), self.ring, now=now)
