"""The report of a response is made whatever the guest says of itself."""

import msgspec
import pytest

from qvmi.cli.response_report import response_page
from qvmi.manager.response.scene import Story
from qvmi.testing import FakeGuest, fake_process
from tests.unit.manager.response.alerts import alert

STORY = Story("book on web", (alert(),), (), ())


@pytest.mark.parametrize("uptime_s", [1e19, -1e19, 0.0])
def test_a_guest_that_says_it_was_up_since_ever_is_reported(uptime_s: float) -> None:
    guest = FakeGuest(processes=[fake_process(1, name="init")])
    guest.guest_facts = msgspec.structs.replace(guest.guest_facts, uptime_s=uptime_s)
    assert "<td>init" in response_page(guest, STORY)


@pytest.mark.parametrize("at", [1e300, -1e300])
def test_an_alert_of_a_moment_that_no_calendar_has_is_reported(at: float) -> None:
    told = msgspec.structs.replace(alert(), last_seen=at)
    page = response_page(None, Story("book on web", (told,), (), (), unseen="<it> may not be"))
    assert f"seen at {at:g};" in page
    assert "not seen: the guest: &lt;it&gt; may not be" in page
