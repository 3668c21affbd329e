"""What processes have, and what the kernel says, is printed whole and in the documented form."""

import json
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from msgspec import Struct

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.views import cmdline, env, files, log, maps, mounts, sockets
from qvmi.errors import GuestError
from qvmi.semantics.guest_os import (
    CommandLine,
    Gap,
    LogRecord,
    MemoryMapping,
    Mount,
    OpenFile,
    Socket,
    Variable,
)
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.unit.cli.corpus import ALIGNED
from tests.unit.cli.streams import Captured

Command = Callable[..., Awaitable[ExitCode]]

MOUNT: Final = Mount(
    id=29,
    parent_id=2,
    namespace=4026531841,
    device="0:25",
    root="/",
    path="/run",
    options="rw,nosuid",
    propagation="shared:7",
    filesystem="tmpfs",
    source="run",
    superblock_options="rw",
    address=Va(0x1000),
)
FILE: Final = OpenFile(
    pid=70,
    fd=3,
    path="/run/log",
    kind="file",
    access="rw",
    position=12,
    device="0:25",
    inode=7,
    deleted=True,
    address=Va(0x2000),
)
MAPPING: Final = MemoryMapping(
    pid=70,
    start=Va(0x400000),
    end=Va(0x401000),
    permissions="r-xp",
    offset=0x1000,
    device="0:2",
    inode=9,
    name="/bin/sh",
    deleted=False,
    address=Va(0x3000),
)
SOCKET: Final = Socket(
    pid=70,
    fd=4,
    protocol="tcp",
    local="0.0.0.0:80",
    remote="",
    state="LISTEN",
    namespace=4026531840,
    inode=11,
    address=Va(0x5000),
)
LINE: Final = CommandLine(70, ("sh", "-c", "a b"), "sh", Va(0x4000))
VARIABLE: Final = Variable(70, "HOME", "/root")
RECORD: Final = LogRecord(5, 1.25, 4, 0, "out of paper", "usb", "+usb:lp0")

LISTINGS: Final[dict[str, tuple[Command, Struct, str]]] = {
    "mounts": (mounts, MOUNT, "mounts"),
    "files": (files, FILE, "open_files"),
    "sockets": (sockets, SOCKET, "sockets"),
    "maps": (maps, MAPPING, "mappings"),
    "cmdline": (cmdline, LINE, "command_lines"),
    "env": (env, VARIABLE, "environment"),
    "log": (log, RECORD, "log"),
}
"""Each command with a row that it lists, and the question that it asks."""
TABLES: Final = {
    "mounts": [
        "ID  PARENT   NAMESPACE  DEVICE  OPTIONS    TYPE   SOURCE  ROOT  PATH",
        "29       2  4026531841    0:25  rw,nosuid  tmpfs  run     /     /run",
    ],
    "files": [
        "PID  FD  MODE  KIND  POSITION  DEVICE  INODE  PATH",
        " 70   3  rw    file        12    0:25      7  /run/log (deleted)",
    ],
    "sockets": [
        "PID  FD  PROTOCOL  STATE    NAMESPACE  INODE  LOCAL       REMOTE",
        " 70   4  tcp       LISTEN  4026531840     11  0.0.0.0:80  -",
    ],
    "maps": [
        "PID     START       END  PERM  OFFSET  DEVICE  INODE  NAME",
        " 70  0x400000  0x401000  r-xp  0x1000     0:2      9  /bin/sh",
    ],
    "cmdline": ["PID  NAME  ARGUMENTS", " 70  sh    sh -c a b"],
    "env": ["NAME  VALUE", "HOME  /root"],
    "log": [
        "    TIME  LEVEL  FACILITY  TEXT",
        "1.250000  warn          0  out of paper",
    ],
}


def machine() -> FakeMachine:
    return FakeMachine(
        FakeGuest(
            processes=[fake_process(1), fake_process(70, name="sh")],
            mounts=[MOUNT],
            open_files=[FILE, OpenFile(1, 0, "/x", "file", "", 0, "0:1", 1, False, Va(1))],  # noqa: FBT003 - the row's own order
            sockets=[SOCKET],
            mappings=[MAPPING],
            command_lines=[LINE],
            environment=[VARIABLE],
            log=[RECORD],
        )
    )


def arguments(name: str, *, exact: bool = False) -> dict[str, object]:
    return {"exact": exact} if name == "log" else {"pid": 70, "exact": exact}


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_rows_are_aligned_in_a_pipe(name: str) -> None:
    output = Captured()
    command, _, _ = LISTINGS[name]
    assert await command(machine(), output, **arguments(name)) is ExitCode.FINE
    assert output.result.splitlines() == TABLES[name]
    assert output.messages == ""


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_rows_have_all_their_fields_as_json(name: str) -> None:
    output = Captured(json=True)
    command, row, _ = LISTINGS[name]
    await command(machine(), output, **arguments(name))
    document = json.loads(output.result)
    assert list(document) == ["items", "gaps", "provenance"]
    (item,) = document["items"]
    fields = _fields(row).items()
    assert item == {k: list(v) if isinstance(v, tuple) else v for k, v in fields}


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_gaps_lead_to_4(name: str) -> None:
    holder, output = machine(), Captured()
    command, _, question = LISTINGS[name]
    holder.guest.show(question, [], gaps=[Gap("dentry", Va(16), "torn")])
    assert await command(holder, output, **arguments(name)) is ExitCode.NOT_SEEN
    assert "dentry at 0x10: torn" in output.messages


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_an_exact_look_looks_for_the_process_in_the_same_moment(name: str) -> None:
    holder, output = machine(), Captured()
    command, _, question = LISTINGS[name]
    assert await command(holder, output, **arguments(name, exact=True)) is ExitCode.FINE
    assert holder.calls == ["capture"]
    assert holder.guest.calls == ([question] if name == "log" else ["processes", question])


@pytest.mark.parametrize("name", [name for name in LISTINGS if name != "log"])
@asynchronous
async def test_a_pid_that_is_none_is_named(name: str) -> None:
    command, _, _ = LISTINGS[name]
    with pytest.raises(GuestError, match="no process of this guest has the pid 4711"):
        await command(machine(), Captured(), pid=4711, exact=False)


@asynchronous
async def test_without_a_pid_all_are_listed() -> None:
    output = Captured(json=True)
    await files(machine(), output, pid=None, exact=False)
    assert [item["pid"] for item in json.loads(output.result)["items"]] == [70, 1]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_whatever_things_are_called_a_pipe_gets_printable_lines(
    name: str, *, as_json: bool
) -> None:
    holder, output = machine(), Captured(json=as_json)
    command, row, question = LISTINGS[name]
    field = {
        "maps": "name",
        "sockets": "local",
        "cmdline": "name",
        "env": "value",
        "log": "text",
    }.get(name, "path")
    rows = [type(row)(**(_fields(row) | {field: text})) for text in ALIGNED]
    holder.guest.show(question, rows)
    assert await command(holder, output, **arguments(name)) is ExitCode.FINE
    lines = output.result.removesuffix("\n").split("\n")
    assert len(lines) == (1 if as_json else len(ALIGNED) + 1)
    assert all(line.isprintable() for line in lines)


def _fields(row: Struct) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__struct_fields__}
