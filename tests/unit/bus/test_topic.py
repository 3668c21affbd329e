"""Topics and filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.bus.topic import ANY, TOPIC_ROOT, Topic, TopicFilter, is_name, name_from
from qvmi.errors import BadMessage, UsageError

HOSTILE_NAMES = [
    "",
    "#",
    "+",
    "/",
    "..",
    "a/b",
    "a#",
    "a+",
    "A",
    "a_b",
    "a.b",
    "a b",
    "a\n",
    "\n",
    "a\0",
    "\0",
    "\x1b[2J",
    "$SYS",
    "$share",
    "ä",
    "\u0661",
    "[red]x[/red]",
    "<b>",
    "a" * 64,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_topic_takes_no_name_that_could_leave_it(name: str) -> None:
    for parts in (
        (name, "b", "c"),
        ("a", name, "c"),
        ("a", "b", name),
        ("a", "b", "request", name),
    ):
        with pytest.raises(UsageError):
            Topic(*parts)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_filter_takes_no_name_that_could_widen_it(name: str) -> None:
    for parts in ((name, "b", "c"), ("a", name, "c"), ("a", "b", name), ("a", "b", "c", name)):
        with pytest.raises(UsageError):
            TopicFilter(*parts)


@given(st.text(alphabet="ab-09/+#$\0\n\x1bA.é"))
def test_every_topic_that_can_be_read_has_four_slashes_and_no_wildcard(text: str) -> None:
    try:
        topic = Topic.parse(f"qvmi/v1/{text}")
    except BadMessage:
        return
    assert topic.text == f"qvmi/v1/{text}"
    assert topic.text.count("/") == 4
    assert not set(topic.text) & set("+#$\0\n\x1b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "qvmi/v1",
        "qvmi/v1/a/b",
        "qvmi/v1/a/b/c/d",
        "qvmi/v1/a/b/request",
        "qvmi/v1/a/b/reply",
        "qvmi/v1/a/b/request/",
        "qvmi/v1/a/b/request/+",
        "qvmi/v1/a/b/request/c/d",
        "qvmi/v2/a/b/c",
        "x/qvmi/v1/a/b/c",
        "/qvmi/v1/a/b/c",
        "qvmi/v1//b/c",
        "qvmi/v1/qvmi/v1/a/b/c",
        "$SYS/broker/load",
    ],
)
def test_refuses_to_read_a_topic_of_another_form(text: str) -> None:
    with pytest.raises(BadMessage):
        Topic.parse(text)


def test_longest_names_are_accepted() -> None:
    assert is_name("a" * 63)
    assert is_name("-")
    assert Topic("a" * 63, "0", "-").text == f"{TOPIC_ROOT}/{'a' * 63}/0/-"


@pytest.mark.parametrize(
    ("topics", "text"),
    [
        (TopicFilter(), "qvmi/v1/#"),
        (TopicFilter("web"), "qvmi/v1/web/#"),
        (TopicFilter("web", "pack"), "qvmi/v1/web/pack/#"),
        (TopicFilter("web", "pack", "alert"), "qvmi/v1/web/pack/alert"),
        (TopicFilter(kind="alert"), "qvmi/v1/+/+/alert"),
        (TopicFilter(codepack="pack"), "qvmi/v1/+/pack/#"),
        (TopicFilter("web", "pack", ANY), "qvmi/v1/web/pack/+"),
        (TopicFilter("web", "pack", "request", ANY), "qvmi/v1/web/pack/request/+"),
        (TopicFilter("web", None, "reply", "clock"), "qvmi/v1/web/+/reply/clock"),
    ],
)
def test_a_filter_has_the_text_that_the_standard_gives_it(topics: TopicFilter, text: str) -> None:
    assert topics.text == text


def test_a_filter_matches_only_what_all_its_parts_name() -> None:
    alert = Topic("web", "pack", "alert")
    assert TopicFilter().matches(alert)
    assert TopicFilter("web", "pack", "alert").matches(alert)
    assert not TopicFilter("db").matches(alert)
    assert not TopicFilter("web", "other").matches(alert)
    assert not TopicFilter("web", kind="status").matches(alert)


def test_a_filter_covers_narrower_ones_and_no_wider_ones() -> None:
    assert TopicFilter("web").covers(TopicFilter("web", "pack"))
    assert TopicFilter("web").covers(TopicFilter("web"))
    assert not TopicFilter("web", "pack").covers(TopicFilter("web"))
    assert not TopicFilter("web").covers(TopicFilter())
    assert not TopicFilter("web").covers(TopicFilter(codepack="pack"))


def test_a_filter_of_kinds_without_a_peer_covers_none_with_one_nor_the_other_way() -> None:
    plain, asked = TopicFilter("web", "pack", ANY), TopicFilter("web", "pack", "request", ANY)
    alert, request = Topic("web", "pack", "alert"), Topic.of_request("web", "pack", "clock")
    assert (plain.matches(alert), asked.matches(alert)) == (True, False)
    assert (plain.matches(request), asked.matches(request)) == (False, True)
    assert not asked.matches(request.reply)
    assert asked.covers(TopicFilter("web", "pack", "request", "clock"))
    for wider in (TopicFilter("web", "pack"), TopicFilter("web", None, "request", ANY)):
        assert not plain.covers(wider)
        assert not asked.covers(wider)
    assert not TopicFilter("web", "pack", "request", "clock").covers(asked)
    assert not TopicFilter("web", "pack", "alert").covers(plain)


def test_a_peer_without_a_kind_selects_nothing_and_is_refused() -> None:
    with pytest.raises(UsageError):
        TopicFilter("web", "pack", None, "clock")


@pytest.mark.parametrize(("kind", "peer"), [("alert", "clock"), ("request", None), ("reply", None)])
def test_requests_and_replies_name_a_peer_and_nothing_else_does(
    kind: str, peer: str | None
) -> None:
    with pytest.raises(UsageError):
        Topic("web", "pack", kind, peer)


@given(st.text())
def test_any_text_gives_a_name(text: str) -> None:
    assert is_name(name_from(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/run/vm/qmp.sock", "run-vm-qmp-sock"),
        ("127.0.0.1:4444", "127-0-0-1-4444"),
        ("", "unnamed"),
        ("\0/#", "unnamed"),
        ("x" * 70 + "/a", "x" * 61 + "-a"),
    ],
)
def test_a_name_keeps_what_it_can_of_the_text(text: str, name: str) -> None:
    assert name_from(text) == name
