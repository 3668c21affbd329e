"""What QMP clients say: whole, byte by byte, with a tail, and any bytes at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.manager.gateways.qmp_requests import (
    MAX_DEPTH,
    MAX_REQUEST,
    NO_ID,
    Refused,
    Request,
    Requests,
)

STATUS = b'{"execute":"query-status"}'


def said(data: bytes) -> list[Request | Refused]:
    return list(Requests().feed(data))


def test_reads_a_command_its_arguments_and_its_id() -> None:
    data = b'{ "execute": "xp", "arguments": {"a": [1, null], "b": "}\\"{"}, "id": {"n": 1.5} }\r\n'
    assert said(data) == [Request("xp", {"a": [1, None], "b": '}"{'}, {"n": 1.5})]
    assert said(STATUS) == [Request("query-status", {}, NO_ID)]


def test_objects_may_stand_on_lines_of_their_own_or_come_one_by_one() -> None:
    requests = Requests()
    assert len(list(requests.feed(STATUS + b"\r\n" + STATUS + b"\n\n" + STATUS + b"\n"))) == 3
    for _ in range(3):  # qemu.qmp ends no line
        assert list(requests.feed(STATUS)) == [Request("query-status", {})]
    assert requests.pending == 0


def test_understands_the_same_byte_by_byte() -> None:
    data = (
        b'{"execute":"a","id":"\\\\\\"}{"}\n {"execute":"b","arguments":{"c":{"d":[]}}}\n' + STATUS
    )
    requests = Requests()
    found = [one for byte in data for one in requests.feed(bytes([byte]))]
    assert found == said(data)
    assert [one.command for one in found if isinstance(one, Request)] == ["a", "b", "query-status"]


@pytest.mark.parametrize("tail", [b"{", b'{"execute', b'{"execute":"a\\', b'{"a":{"b":['])
def test_keeps_the_beginning_of_what_comes_next(tail: bytes) -> None:
    requests = Requests()
    assert list(requests.feed(STATUS + b"\n" + tail)) == [Request("query-status", {})]
    assert requests.pending == len(tail)


@pytest.mark.parametrize(
    "data",
    [
        b'{"execute":"a","execute":"b"}',
        b'{"execute":"a","arguments":{"b":1,"b":2}}',
        b'{"execute":"\\u0071uit"}',
        b'{"\\u0065xecute":"quit"}',
        b'{"execute":"a","id":"\\\\\\u0041"}',
        b'{"exec-oob":"a"}',
        b'{"execute":"a","control":{}}',
        b'{"execute":1}',
        b'{"execute":"a b"}',
        b'{"execute":"a","arguments":1}',
        b'{"execute":"a","id":NaN}',
        b'{"execute":"a","id":Infinity}',
        b'{"execute":"a","id":1e400}',
        b'{"execute":"a","id":"\\udc00"}',
        b'{"execute":"a","id":"\xc3\x28"}',
        b'{"execute":"a",}',
        b"{'execute':'a'}",
        b"{}",
    ],
)
def test_refuses_what_two_readers_might_understand_differently(data: bytes) -> None:
    requests = Requests()
    (refused,) = requests.feed(data + b"\n")
    assert isinstance(refused, Refused)
    assert not refused.fatal
    assert list(requests.feed(STATUS)) == [Request("query-status", {})]


def test_an_escape_of_a_letter_that_has_no_key_of_its_own_is_no_attack() -> None:
    (request,) = said(b'{"execute":"a","id":"\\u00e9 \\\\u0041"}')
    assert request == Request("a", {}, "\u00e9 \\u0041")


def test_nothing_of_a_second_object_on_a_line_is_done() -> None:
    for gap in (b"", b" ", b","):
        requests = Requests()
        first, second, third = requests.feed(STATUS + gap + b'{"execute":"quit"}\n' + STATUS)
        assert (first, third) == (Request("query-status", {}), Request("query-status", {}))
        assert isinstance(second, Refused)


@pytest.mark.parametrize(
    "data",
    [
        b"[1]",
        b"quit\n",
        b'"x"',
        b"}",
        b'{"a":' * (MAX_DEPTH + 1),
        b'{"execute":"' + b"a" * MAX_REQUEST + b'"}',
        b'{"execute":"' + b"a" * MAX_REQUEST,
    ],
)
def test_what_cannot_be_followed_any_more_is_fatal(data: bytes) -> None:
    assert [isinstance(one, Refused) and one.fatal for one in said(data)] == [True]


def test_a_byte_that_no_utf8_has_makes_it_forget_what_was_begun() -> None:
    requests = Requests()
    assert list(requests.feed(b'{"execute":"stop","id":"')) == []
    refused, status = requests.feed(b"\xff\n" + STATUS + b"\n")
    assert isinstance(refused, Refused)
    assert status == Request("query-status", {})


PIECES = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b"\\",
            b"\\u0071",
            b":",
            b",",
            b"\n",
            b" ",
            b"\xff",
            b"1e999",
        ),
        *(b'"execute"', b'"quit"', b'"id"', b'"arguments"', b"'", b"NaN", b"\x00", STATUS),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3)))
def test_whatever_is_said_ends_in_requests_and_refusals_and_little_is_kept(
    pieces: list[bytes],
) -> None:
    requests = Requests()
    for piece in pieces:
        for one in requests.feed(piece):
            if isinstance(one, Request):
                json.dumps(one.arguments)
            elif one.fatal:
                return
        assert requests.pending <= MAX_REQUEST + len(piece)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4
)


@given(
    st.text("abcxyz_-0", min_size=1, max_size=60), st.dictionaries(st.text(max_size=3), JSON), JSON
)
def test_what_an_encoder_writes_is_read_as_it_was_meant(
    name: str, arguments: dict[str, object], number: object
) -> None:
    request = {"execute": "q" + name, "arguments": arguments, "id": number}
    for text in (json.dumps(request), json.dumps(request, ensure_ascii=False, indent=1)):
        data = text.encode("utf-8", "surrogatepass")
        assert said(data) == [Request("q" + name, arguments, number)]
