"""Accounts."""

import pytest

from qvmi.bus.account import Account
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BusRefused, UsageError


def test_a_codepack_publishes_below_its_own_name_only() -> None:
    account = Account.of_codepack("web", "pack")
    account.require_publish(Topic("web", "pack", "alert"))
    for other in (Topic("db", "pack", "alert"), Topic("web", "other", "alert")):
        with pytest.raises(BusRefused):
            account.require_publish(other)


def test_a_codepack_reads_nothing() -> None:
    with pytest.raises(BusRefused):
        Account.of_codepack("web", "pack").require_read(TopicFilter("web", "pack"))


def test_a_reader_reads_no_wider_than_it_may() -> None:
    account = Account.of_reader("watch", TopicFilter("web"))
    account.require_read(TopicFilter("web", kind="alert"))
    with pytest.raises(BusRefused):
        account.require_read(TopicFilter())


def test_a_reader_publishes_nothing() -> None:
    account = Account.of_reader("watch", TopicFilter())
    with pytest.raises(BusRefused):
        account.require_publish(Topic("web", "watch", "alert"))


def test_two_codepacks_never_share_a_name() -> None:
    names = {Account.of_codepack(vm, pack).name for vm in ("a", "a-b") for pack in ("b-c", "c")}
    assert len(names) == 4


def test_secrets_differ_and_are_not_shown() -> None:
    first, second = Account.of_codepack("web", "pack"), Account.of_codepack("web", "pack")
    assert first.secret != second.secret
    assert first.secret not in repr(first)


@pytest.mark.parametrize("name", ["", ".", "a.", "a\nuser b", "a b", "a:b", "#", "a.+", "a\0"])
def test_refuses_a_name_that_would_change_the_files_it_is_written_to(name: str) -> None:
    with pytest.raises(UsageError):
        Account(name)
