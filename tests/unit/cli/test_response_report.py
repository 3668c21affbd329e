"""The report of a response says of each alert what speaks against relying on it."""

import msgspec

from qvmi.cli.response_report import response_page
from qvmi.manager.response.scene import Story
from tests.unit.manager.response.alerts import alert

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
