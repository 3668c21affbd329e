"""Which level is chosen, and what is refused."""

import pytest

from qvmi.errors import IsolationRefused
from qvmi.manager.bus_network.level import Choice, HostFacts, Level, UserNic, Way, choose

ALL = HostFacts({})
NO_NAMESPACES = {Way.ROOTLESS: "no user namespaces", Way.ROOT: "not root"}
ONLY_HOST = HostFacts({**NO_NAMESPACES, Way.GUESTFWD: "no slirp"})

SLIRP = UserNic("user")
RESTRICTED = UserNic("user", restricted=True)
TAP = UserNic("tap", bridge="vmnet0")


@pytest.mark.parametrize("nics", [(), (SLIRP,), (RESTRICTED,), (TAP,), (UserNic("vhost-user"),)])
def test_a_namespace_without_root_is_the_first_choice_beside_any_user_vm(
    nics: tuple[UserNic, ...],
) -> None:
    assert choose(ALL, nics) == Choice(Way.ROOTLESS)


def test_a_way_that_is_worse_says_why_no_better_one_is_taken() -> None:
    choice = choose(HostFacts(NO_NAMESPACES), [SLIRP])
    assert (choice.level, choice.way) == (Level.B, Way.GUESTFWD)
    assert [reason.rpartition(": ")[2] for reason in choice.passed_over] == [
        "no user namespaces",
        "not root",
    ]


def test_a_level_that_is_asked_for_is_given_or_refused_and_never_replaced() -> None:
    assert choose(ALL, [], wanted=Level.B).way is Way.GUESTFWD
    with pytest.raises(IsolationRefused) as refused:
        choose(HostFacts(NO_NAMESPACES), [], wanted=Level.A)
    assert refused.value.wanted == "A"
    assert len(refused.value.reasons) == 2


@pytest.mark.parametrize(
    "nics", [(), (TAP,), (RESTRICTED,), (TAP, RESTRICTED), (UserNic("bridge"),)]
)
def test_the_hosts_bridge_is_given_beside_cards_that_filters_hold_back(
    nics: tuple[UserNic, ...],
) -> None:
    assert choose(ONLY_HOST, nics, bus_bridge="qv0").level is Level.C


@pytest.mark.parametrize(
    ("nics", "because"),
    [
        ((SLIRP,), "restrict=on"),
        ((TAP, SLIRP), "restrict=on"),
        ((UserNic("vhost-user"),), "vhost-user"),
        ((UserNic("passt"),), "passt"),
        ((UserNic(""),), "not known"),
        ((UserNic("tap", bridge="qv0"),), "on qv0 itself"),
    ],
)
def test_the_hosts_bridge_is_refused_beside_what_gets_around_its_filters(
    nics: tuple[UserNic, ...], because: str
) -> None:
    with pytest.raises(IsolationRefused, match=because):
        choose(ONLY_HOST, nics, bus_bridge="qv0")
    with pytest.raises(IsolationRefused, match=because):
        choose(ALL, nics, wanted=Level.C, bus_bridge="qv0")


def test_where_nothing_can_be_had_each_way_says_why() -> None:
    nothing = HostFacts(dict.fromkeys(Way, "no"))
    with pytest.raises(IsolationRefused) as refused:
        choose(nothing, [])
    assert len(refused.value.reasons) == len(Way)
