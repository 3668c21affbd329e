"""The report of a response says what is known, and of each alert what speaks against relying on it."""

import msgspec
import pytest

from qvmi.cli.printing.response_report import response_page
from qvmi.manager.response.scene import Story
from qvmi.testing import FakeGuest, fake_process
from tests.unit.manager.response.alerts import alert

AT = 0xFFFF888003ABC000
CAVEAT = "policy: advisory <b>"
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


def test_what_held_a_codepack_and_each_caveat_are_in_the_report_and_nothing_of_them_acts() -> None:
    sure = msgspec.structs.replace(alert("sure"), held_by="another uid")
    unsure = msgspec.structs.replace(alert("unsure"), held_by="nothing", caveats=(CAVEAT,))
    page = response_page(None, Story("a title", (sure, unsure), (), ()))
    of_sure, _, of_unsure = page.partition("alert 2 of unsure")
    assert "held to its policy by another uid" in of_sure
    assert "advisory" not in of_sure
    assert "held to its policy by nothing" in of_unsure
    assert "policy: advisory &lt;b&gt;" in of_unsure


@pytest.mark.parametrize("files", [(), ("guest.core",)])
def test_files_that_lie_beside_it_are_listed_where_there_are_any(files: tuple[str, ...]) -> None:
    page = response_page(None, Story("a story", (alert(pid=7, address=AT),), (), files))
    assert ("files (" in page) == bool(files)
    assert all(f"<td>{name}" in page for name in files)
    assert f"<td>{AT:#x}<td><td>pid 7" in page
    assert "not seen: the guest" in page
