"""The report of a response says what is known, and nothing of what there is none of."""

import pytest

from qvmi.cli.response_report import response_page
from qvmi.manager.response.scene import Story
from tests.unit.manager.response.alerts import alert

AT = 0xFFFF888003ABC000


@pytest.mark.parametrize("files", [(), ("guest.core",)])
def test_files_that_lie_beside_it_are_listed_where_there_are_any(files: tuple[str, ...]) -> None:
    page = response_page(None, Story("a story", (alert(pid=7, address=AT),), (), files))
    assert ("files (" in page) == bool(files)
    assert all(f"<td>{name}" in page for name in files)
    assert f"<td>{AT:#x}<td><td>pid 7" in page
    assert "not seen: the guest" in page
