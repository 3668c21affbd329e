"""What a QEMU command line says, and that an odd one does no harm."""

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.qmp.command_line import Purpose, parse_command_line, parse_config

QMP, HMP, GDB, OTHER = Purpose.QMP, Purpose.HMP, Purpose.GDB, Purpose.OTHER
SOCKET = UnixAddress("/q.sock")


def sockets(*arguments: str) -> list[tuple[Purpose, object]]:
    return [(each.purpose, each.address) for each in parse_command_line(arguments).sockets]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-qmp", "unix:/q.sock,server=on,wait=off"), [(QMP, SOCKET)]),
        (("--qmp", "unix:/q.sock,server,nowait"), [(QMP, SOCKET)]),
        (("-qmp-pretty", "tcp:192.0.2.1:4444,server"), [(QMP, TcpAddress("192.0.2.1", 4444))]),
        (("-qmp", "tcp:0.0.0.0:4444,server=yes"), [(QMP, TcpAddress("localhost", 4444))]),
        (("-qmp", "unix:/a,,b,server"), [(QMP, UnixAddress("/a,b"))]),
        (("-qmp", "unix:/q.sock"), []),
        (("-qmp", "unix:/q.sock,server=off"), []),
        (("-qmp", "stdio"), []),
        (("-qmp", "tcp:localhost:99999,server"), []),
        (("-qmp", "tcp:nonsense,server"), []),
        (("-monitor", "telnet::55,server,nowait"), [(HMP, TcpAddress("localhost", 55))]),
        (("-s",), [(GDB, TcpAddress("localhost", 1234))]),
        (("-gdb", "tcp::9999"), [(GDB, TcpAddress("localhost", 9999))]),
        (("-gdb", "unix:/g,server=on"), [(GDB, UnixAddress("/g"))]),
        (("-serial", "unix:/s,server"), [(OTHER, UnixAddress("/s"))]),
        (("-append", "-s"), []),
        (("-kernel", "-qmp", "unix:/q.sock,server"), []),
        (("-nographic", "-S", "-qmp", "unix:/q.sock,server"), [(QMP, SOCKET)]),
        (("disk.img", "-qmp", "unix:/q.sock,server"), [(QMP, SOCKET)]),
        (("-qmp",), []),
        (("-",), []),
        (("--",), []),
    ],
)
def test_finds_the_sockets_in_every_spelling(
    arguments: tuple[str, ...], expected: list[tuple[Purpose, object]]
) -> None:
    assert sockets(*arguments) == expected


def test_a_chardev_serves_what_names_it() -> None:
    arguments = (
        *(
            "-chardev",
            "socket,id=q,path=/q.sock,server=on,wait=off",
            "-mon",
            "chardev=q,mode=control",
        ),
        *("-chardev", "socket,id=h,port=55,host=::1,server", "-mon", "h"),
        *("-chardev", "socket,id=g,path=/g,server", "-gdb", "chardev:g"),
        *("-chardev", "socket,id=a,path=/agent,server=on", "-chardev", "file,id=f,path=/log"),
    )
    line = parse_command_line(arguments)
    assert line.purpose_of(SOCKET) is QMP
    assert line.purpose_of(TcpAddress("localhost", 55)) is HMP
    assert line.purpose_of(UnixAddress("/g")) is GDB
    assert line.purpose_of(UnixAddress("/agent")) is OTHER
    assert line.purpose_of(UnixAddress("/log")) is None
    assert line.purpose_of(TcpAddress("192.0.2.1", 55)) is None


@pytest.mark.parametrize(
    ("monitor", "purpose"),
    [
        ("monitor-qmp,id=m,chardev=q", QMP),
        ("qom-type=monitor-qmp,id=m,chardev=q", QMP),
        ('{"qom-type": "monitor-qmp", "id": "m", "chardev": "q", "pretty": true}', QMP),
        ("monitor-hmp,id=m,chardev=q", HMP),
        ("memory-backend-ram,id=m,size=1G", OTHER),
        ('{"qom-type": ', OTHER),
    ],
)
def test_a_monitor_may_be_an_object(monitor: str, purpose: Purpose) -> None:
    chardev = ("-chardev", "socket,id=q,path=/q.sock,server=on,wait=off")
    assert parse_command_line((*chardev, "-object", monitor)).purpose_of(SOCKET) is purpose


def test_a_monitor_may_be_an_object_in_a_config_file() -> None:
    groups = parse_config(
        '[chardev "q"]\nbackend = "socket"\npath = "/q.sock"\nserver = "on"\n'
        '[object "m"]\nqom-type = "monitor-qmp"\nchardev = "q"\n'
    )
    assert parse_command_line((), groups).purpose_of(SOCKET) is QMP


def test_reads_name_and_machine() -> None:
    line = parse_command_line(("-M", "pc", "-machine", "q35,accel=tcg", "-name", "guest=web,x=y"))
    assert (line.name, line.machine, line.libvirt) == ("web", "q35", False)
    short = parse_command_line(("-name", "web", "-machine", "type=virt"))
    assert (short.name, short.machine) == ("web", "virt")
    nothing = parse_command_line(())
    assert (nothing.name, nothing.machine, nothing.sockets) == (None, None, ())


def test_recognises_what_libvirt_has_started() -> None:
    # As libvirt 9.0 writes it, shortened.
    line = parse_command_line(
        (
            *("-name", "guest=web1,debug-threads=on", "-S"),
            *("-object", '{"qom-type":"secret","id":"masterKey0"}'),
            *("-machine", "pc-q35-7.2,usb=off", "-no-user-config", "-nodefaults"),
            *("-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off"),
            *("-mon", "chardev=charmonitor,id=monitor,mode=control"),
        )
    )
    assert (line.name, line.libvirt) == ("web1", True)
    assert (line.sockets[0].purpose, line.sockets[0].address) == (QMP, None)


def test_reads_a_config_file() -> None:
    groups = parse_config(
        '# comment\n[chardev "q"]\n  backend = "socket"\n  path = "/q.sock"\n  server = "on"\n'
        '[mon "m"]\nchardev = "q"\nmode = "control"\n[machine]\ntype = "q35"\n'
        '[name]\nguest = "web"\nnonsense\n[broken\n = ""\n'
    )
    line = parse_command_line(("-readconfig", "/vm.cfg"), groups)
    assert line.config_files == ("/vm.cfg",)
    assert (line.name, line.machine) == ("web", "q35")
    assert line.purpose_of(SOCKET) is QMP


def flags_that_qemu_lists() -> set[str]:
    """An option's value is listed one blank behind it; of ``-dtb`` alone, four blanks behind."""
    listed = subprocess.run(
        ["qemu-system-x86_64", "-help"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^(-\S+(?: or -\S+)*)(?:\s{2,}.*|)$", listed, re.MULTILINE)
    return {flag for line in found for flag in line.split(" or ")} - {"-dtb"}


@pytest.mark.parametrize("flag", sorted(flags_that_qemu_lists()))
def test_an_option_without_a_value_takes_none(flag: str) -> None:
    assert (QMP, SOCKET) in sockets(flag, "-qmp", "unix:/q.sock,server")


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["-qmp", "-mon", "-chardev", "-gdb", "-s", "-name", "-machine", "-serial"]
            ),
            st.text(alphabet="unixtcp:/,=.-0123456789\0\udcffsocket,id=server", max_size=40),
        ),
        max_size=12,
    )
)
def test_no_command_line_raises(arguments: list[str]) -> None:
    line = parse_command_line(arguments)
    assert line.purpose_of(SOCKET) in {None, *Purpose}


@given(st.text(alphabet='[]"= \nchardevmon#', max_size=200))
def test_no_config_file_raises(text: str) -> None:
    assert isinstance(parse_command_line((), parse_config(text)).sockets, tuple)
