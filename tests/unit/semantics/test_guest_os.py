"""The rows and listings of the selected interface."""

import pytest

from qvmi.addr import Va
from qvmi.errors import UsageError
from qvmi.semantics.guest_os import Gap, Listing, Process
from qvmi.testing import fake_process
from qvmi.view import Provenance, Taken

LIVE = Provenance(Taken.LIVE, at=1.0)
INIT = fake_process(1, name="init")


def test_a_listing_is_iterated_and_counted_by_its_rows() -> None:
    listing = Listing((INIT,), (Gap("tasks", None, "torn"),), LIVE)
    assert (list(listing), len(listing)) == ([INIT], 1)


def test_nothing_found_is_not_could_not_look() -> None:
    assert Listing((), (), LIVE) != Listing((), (Gap("tasks", Va(8), "unreadable"),), LIVE)


@pytest.mark.parametrize("value", [INIT, LIVE, Listing((INIT,), (), LIVE), Gap("tasks", None, "")])
def test_what_was_found_cannot_be_changed(value: object) -> None:
    name = "pid" if isinstance(value, Process) else next(iter(_fields(value)))
    with pytest.raises(AttributeError):
        setattr(value, name, 0)


def _fields(value: object) -> tuple[str, ...]:
    return getattr(value, "__struct_fields__", None) or tuple(getattr(value, "__slots__", ()))


def test_a_listing_gives_rows_by_place_and_by_field() -> None:
    shell, other = fake_process(7, name="sh"), fake_process(8, name="sh")
    listing = Listing((INIT, shell, other), (), LIVE)
    assert (listing[0], listing[-1], listing[1:]) == (INIT, other, (shell, other))
    assert listing.find(pid=8) is other
    assert listing.find(name="sh") is shell
    assert listing.find(name="sh", pid=8) is other
    assert listing.find(pid=9) is None


def test_a_field_that_the_rows_have_not_is_an_error_and_no_empty_answer() -> None:
    with pytest.raises(UsageError, match="a Process has no field 'pids'"):
        Listing((INIT,), (), LIVE).find(pids=1)
