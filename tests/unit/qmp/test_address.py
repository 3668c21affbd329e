"""Every documented form of an address, and what is told about the others."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import UsageError
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.qmp.address import LibvirtAddress, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/vm/qmp.sock", UnixAddress("/run/vm/qmp.sock")),
        ("qmp.sock", UnixAddress("qmp.sock")),
        ("./web:4444", UnixAddress("./web:4444")),
        ("unix:web:4444", UnixAddress("web:4444")),
        ("unix:/run/vm/qmp.sock", UnixAddress("/run/vm/qmp.sock")),
        ("/run/a, b.sock", UnixAddress("/run/a, b.sock")),
        (Path("/run/vm/unix:x"), UnixAddress("/run/vm/unix:x")),
        ("localhost:4444", TcpAddress("localhost", 4444)),
        ("tcp:192.0.2.7:4444", TcpAddress("192.0.2.7", 4444)),
        ("tcp::4444", TcpAddress("localhost", 4444)),
        (":4444", TcpAddress("localhost", 4444)),
        ("[::1]:4444", TcpAddress("::1", 4444)),
        ("tcp:[fe80::1%eth0]:4444", TcpAddress("fe80::1%eth0", 4444)),
        ("libvirt:web1", LibvirtAddress("web1")),
        ("libvirt:qemu:///system/web1", LibvirtAddress("web1", "qemu:///system")),
        ("libvirt:qemu+ssh://root@h/system/a:b", LibvirtAddress("a:b", "qemu+ssh://root@h/system")),
    ],
)
def test_reads_every_form(text: str | Path, expected: object) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "PATH, unix:PATH"),
        ("unix:", "PATH, unix:PATH"),
        ("/run/\0", "no path"),
        ("/" + "x" * 107, "108 bytes"),
        ("localhost:0", "between 1 and 65535"),
        ("localhost:65536", "between 1 and 65535"),
        ("::1:4444", "brackets"),
        ("tcp:4444", "HOST:PORT"),
        ("tcp:localhost", "HOST:PORT"),
        ("unix:/run/q.sock,server=on,wait=off", "give /run/q.sock"),
        ("/run/q.sock,server,nowait", "give /run/q.sock"),
        ("tcp:localhost:4444,server=on", "give localhost:4444"),
        ("libvirt:", "libvirt:DOMAIN"),
        ("libvirt:qemu:///system/", "libvirt:DOMAIN"),
    ],
)
def test_says_what_is_wrong_with_what_has_no_form(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_address(text)


@given(st.text(max_size=120))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert isinstance(address, UnixAddress | TcpAddress | LibvirtAddress)


@pytest.mark.parametrize(
    "address",
    [
        UnixAddress("/run/vm/qmp.sock"),
        TcpAddress("localhost", 4444),
        TcpAddress("::1", 4444),
        LibvirtAddress("web1"),
        LibvirtAddress("web1", "qemu:///system"),
    ],
)
def test_what_is_written_is_read_back(address: object) -> None:
    assert parse_address(str(address)) == address
