"""What the guest can do about being looked at takes nothing from the evidence."""

from pathlib import Path
from typing import Any

import pytest

from qvmi.errors import QueryTimeout, QvmiError, UnknownGuest, WalkFailed
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.scene import Scene, Story
from qvmi.manager.response.steps import Evidence
from qvmi.manager.response.stillness import Stillness
from qvmi.policy import READ_ONLY, PolicyGate
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.manager.response.alerts import alert


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
    stillness = Stillness(machine, lambda _: None)
    scene = Scene("run-1", "web", "book", (alert(),), str(tmp_path), stillness)
    await (await actor.prepare(Evidence(), scene)).act()
    kept = {path.name for path in scene.folder.iterdir()}
    assert {"alerts.json", "records.json", "report.html", "SHA256SUMS"} <= kept
    assert (scene.folder / "report.html").read_text() == f"unseen: {error}"
