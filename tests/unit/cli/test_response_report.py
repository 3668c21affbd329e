"""The report of a response says what is known, and of each alert what speaks against relying on it."""

import msgspec
import pytest

from qvmi.cli.response_report import response_page
from qvmi.manager.response.scene import Story
from tests.unit.manager.response.alerts import alert

AT = 0xFFFF888003ABC000
CAVEAT = "policy: advisory <b>"


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
