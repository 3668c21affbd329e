"""One door for every kind of address."""

from pathlib import Path

import pytest

from qvmi.errors import SocketUnreachable, UsageError
from qvmi.host.address import UnixAddress
from qvmi.qmp.open import open_monitor
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.unit.qmp.scripted_server import replayed, served, watched_loop
from tests.wire.transcript import Transcript


@asynchronous
async def test_a_path_leads_to_a_session_however_it_is_given() -> None:
    async with watched_loop(), served(replayed(Transcript.load("q35"))) as path:
        for address in (path, f"unix:{path}", Path(path), UnixAddress(path)):
            async with await open_monitor(address) as monitor:
                assert isinstance(monitor, QmpSession)
                assert monitor.target == path


@asynchronous
async def test_a_libvirt_address_leads_to_virsh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SocketUnreachable, match="virsh"):
        await open_monitor("libvirt:web1")


@asynchronous
async def test_what_is_no_address_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        await open_monitor("")
