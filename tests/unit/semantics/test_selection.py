"""Choosing who answers for a guest, and keeping what was learned of it."""

from pathlib import Path

import pytest

from qvmi.errors import UnknownGuest, UsageError
from qvmi.semantics.guest_os import GuestOS
from qvmi.semantics.selection import Choices, remember, select
from qvmi.symbols.profile import ProfileCache
from tests.synthetic.guest import Guest
from tests.synthetic.registers import vcpu


def test_linux_is_selected_for_linux() -> None:
    assert os_of(select(Guest().view(), Choices())) == "linux"


def os_of(guest: GuestOS) -> str:
    return guest.facts().os


def test_nobody_is_selected_for_a_guest_nobody_knows() -> None:
    with pytest.raises(UnknownGuest) as caught:
        select(Guest().view(vcpu(paging=False)), Choices())
    assert caught.value.evidence


def test_what_was_learned_is_kept_for_the_next_time(tmp_path: Path) -> None:
    choices = Choices(cache=ProfileCache(tmp_path / "profiles"))
    remember(select(Guest().view(), choices), choices)
    again = select(Guest().view(), choices)
    assert any("profile of this build" in one.source for one in again.facts().evidence)


def test_without_a_cache_nothing_is_kept(tmp_path: Path) -> None:
    remember(select(Guest().view(), Choices()), Choices())
    assert list(tmp_path.iterdir()) == []


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    choices = Choices(cache=ProfileCache(tmp_path))
    guest = select(Guest().view(), choices)
    remember(guest, choices)
    (path,) = tmp_path.iterdir()
    path.unlink()
    remember(guest, choices)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    choices = Choices(cache=ProfileCache(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"name another folder or do without \(--no-cache"):
        remember(select(Guest().view(), choices), choices)
