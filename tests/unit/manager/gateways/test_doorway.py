"""The sockets of gateways: private, in a private folder, and only for the gateway's own user."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from qvmi.audit import AuditLog
from qvmi.errors import UsageError
from qvmi.manager.gateways import outlet as outlet_module
from qvmi.manager.gateways.doorway import Visitor, listening, receive
from qvmi.manager.gateways.outlet import MAX_WAITING, Outlet, hear, talk
from tests.asynchronous import asynchronous, until

NOBODY = 65534
ANSWER_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    private = tmp_path / "gate"
    private.mkdir(mode=0o700)
    return private


async def greet(connection: socket.socket, visitor: Visitor) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, f"{visitor.pid} {visitor.uid}".encode())


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[socket.socket]:
    with listening(path) as server:
        task = asyncio.create_task(receive(server, "test", greet))
        try:
            yield server
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def heard(path: Path) -> bytes:
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return await reader.read()
        finally:
            writer.close()


@asynchronous
async def test_a_socket_is_its_owners_alone_and_goes_with_the_gateway(folder: Path) -> None:
    path = folder / "qmp"
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await heard(path) == f"{os.getpid()} {os.geteuid()}".encode()
    assert not path.exists()


async def turns(counted: list[int]) -> None:
    while True:
        counted[0] += 1
        await asyncio.sleep(0)


@asynchronous
async def test_who_is_served_gets_a_turn_between_clients_that_wait_to_be_let_in(
    folder: Path,
) -> None:
    path, number = folder / "qmp", 12
    with listening(path) as server, ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.fspath(path))
        counted, came = [0], list[int]()

        async def count(_: socket.socket, __: Visitor) -> None:
            came.append(counted[0])

        others = asyncio.create_task(turns(counted))
        receiving = asyncio.create_task(receive(server, "test", count))
        await until(lambda: len(came) == number)
        for task in (others, receiving):
            task.cancel()
        await asyncio.wait({others, receiving})
    assert sorted(set(came)) == came, "two came in one turn"


@asynchronous
async def test_others_get_a_turn_between_the_pieces_of_a_client_that_says_much() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.sendall(b"+" * 150_000)
        counted = [0]
        others = asyncio.create_task(turns(counted))
        heard_at = []
        for _ in range(2):
            assert await hear(ours)
            heard_at.append(counted[0])
        others.cancel()
        await asyncio.wait({others})
    assert heard_at[0] < heard_at[1]


@asynchronous
async def test_a_client_is_named_once_however_it_calls_itself_later(folder: Path) -> None:
    names: list[str] = []

    async def note(connection: socket.socket, visitor: Visitor) -> None:
        names.append(str(visitor))
        await asyncio.get_running_loop().sock_recv(connection, 1)
        names.append(str(visitor))

    says = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "os.set_inheritable(s.fileno(), True); os.execv('/bin/sh', ['a\\nb\\x1b' + 'c' * 900, '-c',"
        " 'echo >&' + str(s.fileno())])"
    )
    path = folder / "qmp"
    with listening(path) as server:
        receiving = asyncio.create_task(receive(server, "test", note))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", says, os.fspath(path))
        )
        await process.wait()
        await until(lambda: len(names) == 2)
        receiving.cancel()
        await asyncio.wait({receiving})
    assert names[0] == names[1]
    assert names[0].isprintable()
    assert len(names[0]) < 120


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(UsageError, match="may be written to by others"), listening(folder / "qmp"):
        pass


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o770, True), (0o1777, False)])
def test_a_folder_in_one_that_others_may_write_to_is_refused(
    folder: Path, mode: int, *, refused: bool
) -> None:
    inner = folder / "inner"
    inner.mkdir(mode=0o700)
    folder.chmod(mode)
    if refused:
        with pytest.raises(UsageError, match="in place of"), listening(inner / "qmp"):
            pass
    else:  # sticky, as /tmp is: nobody else may rename what is in it
        with listening(inner / "qmp"):
            assert (inner / "qmp").exists()


def test_a_folder_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no folder"), listening(folder / "no" / "qmp"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(UsageError, match="belongs to another user"), listening(folder / "qmp"):
        pass


def test_what_a_killed_gateway_has_left_is_replaced_and_nothing_else_is(folder: Path) -> None:
    path = folder / "qmp"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path):
        assert path.exists()
        with pytest.raises(UsageError, match="listens on"), listening(path):
            pass
        assert path.exists()
    path.write_text("a file")
    with pytest.raises(UsageError, match="no socket of yours"), listening(path):
        pass
    assert path.read_text() == "a file"
    path.unlink()
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(UsageError, match="no socket of yours"), listening(path):
        pass


AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.settimeout(20)
client.connect(sys.argv[1])
sys.stdout.write(repr(client.recv(100)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@asynchronous
async def test_another_user_who_can_connect_is_sent_away_and_that_is_logged() -> None:
    # Below /tmp, as pytest's own folders let no other user pass.
    with open_to_all() as path, AuditLog(path.parent / "audit.log"):
        async with serving(path):
            path.chmod(0o666)
            command = (sys.executable, "-c", AS_NOBODY, str(path))
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, check=True, cwd="/", timeout=ANSWER_S
            )
            assert done.stdout == b"b''"
        log = (path.parent / "audit.log").read_text()
        assert f"of uid {NOBODY}: not the gateway's own user" in log


@contextmanager
def open_to_all() -> Iterator[Path]:

    with tempfile.TemporaryDirectory(prefix="qvmi-door-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "qmp"


# --------------------------------------------------------------------------- what is said to a client


@asynchronous
async def test_who_does_not_listen_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "_SEND_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        outlet = Outlet(ours)
        outlet.say(b"x" * (8 << 20))
        async with asyncio.timeout(ANSWER_S):
            await talk(outlet, asyncio.sleep(3600))


@asynchronous
async def test_what_piles_up_for_a_client_is_bounded() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        outlet = Outlet(ours)
        for _ in range(MAX_WAITING // (1 << 20)):
            outlet.say(b"x" * (1 << 20))
        outlet.say(b"one too many")
        async with asyncio.timeout(ANSWER_S):
            await outlet.run()


@asynchronous
async def test_all_that_was_said_is_heard_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.settimeout(0)
        outlet = Outlet(ours)
        saying = asyncio.create_task(outlet.run())
        pieces = [bytes([number]) * 50_000 for number in range(20)]
        for piece in pieces:
            outlet.say(piece)
        heard_so_far = bytearray()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_S):
            while len(heard_so_far) < 1_000_000:
                heard_so_far += await loop.sock_recv(theirs, 1 << 16)
            await outlet.heard()
        assert bytes(heard_so_far) == b"".join(pieces)
        saying.cancel()
        await until(saying.done)
