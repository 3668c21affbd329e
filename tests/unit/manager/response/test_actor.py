"""What the guest can do about being looked at takes nothing from the evidence, and breaks no step."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Observation
from qvmi.errors import (
    QueryTimeout,
    QvmiError,
    StepRefused,
    UnknownGuest,
    UsageError,
    WalkFailed,
)
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.scene import Scene, Story
from qvmi.manager.response.steps import Evidence, Restore
from qvmi.manager.response.stillness import Stillness
from qvmi.policy import READ_ONLY, Grant, Policy, PolicyGate
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.manager.response.alerts import alert


def made_scene(machine: Any, folder: Path, *alerts: Alert) -> Scene:  # noqa: ANN401 - a fake one
    return Scene("run-1", "web", "book", alerts, str(folder), Stillness(machine, lambda _: None))


@pytest.mark.parametrize(
    "error", [WalkFailed("tasks", "a circle"), QueryTimeout(30.0), UnknownGuest("nothing")]
)
@asynchronous
async def test_evidence_is_kept_where_the_guest_cannot_be_looked_at(
    tmp_path: Path, error: QvmiError
) -> None:
    machine: Any = FakeMachine(FakeGuest())
    machine.monitor = None  # QEMU is not asked for anything

    def report(guest: GuestOS | None, story: Story) -> str:
        if guest is not None:
            raise error
        return f"unseen: {story.unseen}"

    actor = Actor(machine, PolicyGate("response", READ_ONLY), lambda *_: None, report)
    scene = made_scene(machine, tmp_path, alert())
    await (await actor.prepare(Evidence(), scene)).act()
    kept = {path.name for path in scene.folder.iterdir()}
    assert {"alerts.json", "records.json", "report.html", "SHA256SUMS"} <= kept
    assert (scene.folder / "report.html").read_text() == f"unseen: {error}"


@asynchronous
async def test_nothing_is_written_back_where_no_linux_runs(tmp_path: Path) -> None:
    machine: Any = FakeMachine(FakeGuest())
    machine.monitor = None
    gate = PolicyGate("response", Policy(frozenset({Grant.WRITE})))
    changed, should = (
        Observation(view="v", present=present, address=Va(0x1000), data=data * 8)
        for present, data in ((True, "66"), (False, "00"))
    )
    first = alert()
    finding = msgspec.structs.replace(first.finding, evidence=(changed, should))
    scene = made_scene(machine, tmp_path, msgspec.structs.replace(first, finding=finding))
    with pytest.raises(StepRefused, match="no Linux runs there"):
        await Actor(machine, gate, lambda *_: None).prepare(Restore(), scene)


@asynchronous
async def test_evidence_whose_folder_cannot_be_read_is_an_error_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error")

    machine: Any = FakeMachine(FakeGuest())
    machine.monitor = None
    actor = Actor(machine, PolicyGate("response", READ_ONLY), lambda *_: None, lambda *_: "")
    prepared = await actor.prepare(Evidence(), made_scene(machine, tmp_path, alert()))
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UsageError, match="Input/output error"):
        await prepared.act()
