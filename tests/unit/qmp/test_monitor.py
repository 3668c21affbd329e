"""Lines of the human monitor, whose refusals are text like its answers."""

import json
from typing import Any

import pytest

from qvmi.errors import QmpCommandFailed, QmpProtocolError, UsageError
from qvmi.qmp.monitor import QemuVersion
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.unit.qmp.scripted_server import Handler, greeted, served, watched_loop
from tests.wire.transcript import Transcript


def printing(value: object) -> Handler:
    def answer(request: dict[str, Any]) -> bytes:
        return json.dumps({"return": value, "id": request["id"]}).encode() + b"\n"

    return greeted(answer)


@asynchronous
async def test_a_line_is_answered_with_plain_line_ends() -> None:
    async with (
        watched_loop(),
        served(printing("one\r\ntwo\r\n")) as path,
        await QmpSession.connect(path) as session,
    ):
        assert await session.hmp("info something") == "one\ntwo\n"


# QEMU's own words; those of the first are recorded, the others are from monitor/hmp.c and hmp-cmds.c.
@pytest.mark.parametrize(
    "printed",
    [
        Transcript.load("q35").returned(
            "human-monitor-command", **{"command-line": "info registers -z"}
        ),
        "unknown command: 'bogus'\r\n",
        "Error: Device 'x' not found\r\n",
        'Command "info" is not available.\r\n',
        "Command 'stop' not available with -preconfig until machine initialization has completed.\r\n",
    ],
)
@asynchronous
async def test_a_refusal_is_an_error_in_qemus_words(printed: str) -> None:
    async with (
        watched_loop(),
        served(printing(printed)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpCommandFailed) as caught:
            await session.hmp("info something")
        assert caught.value.command == "info something"
        assert printed.split(maxsplit=1)[0] in caught.value.description


@pytest.mark.parametrize("value", [{}, None, 7, ["text"]])
@asynchronous
async def test_an_answer_that_is_no_text_is_a_protocol_error(value: object) -> None:
    async with (
        watched_loop(),
        served(printing(value)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpProtocolError):
            await session.hmp("info something")


@pytest.mark.parametrize("line", ["info status\nquit", "info\rquit", "x\0", "\x1b[A"])
@asynchronous
async def test_a_line_cannot_smuggle_in_another(line: str) -> None:
    async with (
        watched_loop(),
        served(printing("")) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(UsageError):
            await session.hmp(line)


def test_versions_are_ordered() -> None:
    assert QemuVersion(7, 2, 22) < QemuVersion(8, 1, 0) < QemuVersion(10, 0, 0)
