"""mosquitto's configuration file says who may enter, or that it cannot be known."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from qvmi.manager.isolation.broker_config import config_path, read_config
from qvmi.manager.isolation.facts import BrokerConfig, Unseen

GOOD = "listener 0 s\nallow_anonymous false\nacl_file access\npassword_file passwords\n"


def read(folder: Path, text: str) -> BrokerConfig | Unseen:
    (folder / "m.conf").write_text(text)
    (folder / "m.conf").chmod(0o644)
    (folder / "access").touch(0o600)
    return read_config(os.getpid(), ("mosquitto", "-c", str(folder / "m.conf")))


@pytest.mark.parametrize(
    ("text", "anonymous", "access", "beyond"),
    [
        (GOOD, False, True, ()),
        ("listener 1883\n", False, False, ()),
        ("# listener 1883\nacl_file access\n", True, True, ()),
        ("port 1883\nallow_anonymous true\n", True, False, ()),
        # Of two listeners with settings of their own, one lets everybody in.
        ("listener 1\nallow_anonymous true\nlistener 2\nallow_anonymous false\n", True, False, ()),
        (GOOD + "plugin /x.so\nconnection up\n", False, True, ("connection", "plugin")),
        (GOOD + "per_listener_settings true\n", False, True, ("per_listener_settings",)),
        (GOOD + "include_dir /etc/mosquitto/conf.d\n", False, True, ("include_dir",)),
        ("", True, False, ()),
        ("\0\xff\n", True, False, ()),
    ],
)
def test_what_the_file_says(
    tmp_path: Path, text: str, anonymous: object, access: object, beyond: Sequence[str]
) -> None:
    found = read(tmp_path, text)
    assert isinstance(found, BrokerConfig)
    assert (found.anonymous, found.has_access_list, found.beyond) == (anonymous, access, beyond)


@pytest.mark.parametrize(
    ("text", "sweeping"),
    [
        ("user a\ntopic write qvmi/v1/vm/a/+\ntopic read #\n", ()),
        ("user a\ntopic write qvmi/v1/vm/+/reply/a\ntopic deny #\n", ()),
        ("pattern write qvmi/v1/vm/%u/#\n# topic #\nuser\n", ()),
        ("user a b\ntopic #\n", ("user a b: #",)),
        ("user a\ntopic readwrite qvmi/#\n", ("user a: qvmi/#",)),
        ("user a\ntopic write qvmi/+/+/+/alert\n", ("user a: qvmi/+/+/+/alert",)),
        ("pattern readwrite #\n", ("pattern #",)),
        ("pattern write +/v1/+/+/+\n", ("pattern +/v1/+/+/+",)),
    ],
)
def test_who_may_speak_for_everybody_is_told(
    tmp_path: Path, text: str, sweeping: Sequence[str]
) -> None:
    access = tmp_path / "all"
    access.write_text(text)
    found = read(tmp_path, f"listener 0 s\nacl_file {access}\n")
    assert isinstance(found, BrokerConfig)
    assert found.sweeping == sweeping


def test_an_access_list_that_cannot_be_read_is_not_seen(tmp_path: Path) -> None:
    found = read(tmp_path, f"listener 0 s\nacl_file {tmp_path}/none\n")
    assert isinstance(found, BrokerConfig)
    assert isinstance(found.sweeping, Unseen)


def test_its_files_are_told_with_who_may_open_them(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert isinstance(found, BrokerConfig)
    assert [(Path(each.path).name, each.mode) for each in found.files] == [("m.conf", 0o644)]


def test_without_a_file_everybody_may_enter() -> None:
    found = read_config(os.getpid(), ("mosquitto", "-p", "1883"))
    assert found == BrokerConfig("", anonymous=True, has_access_list=False, beyond=(), files=())


def test_a_file_that_cannot_be_read_is_not_seen(tmp_path: Path) -> None:
    arguments = ("mosquitto", "-c", str(tmp_path / "none"))
    assert isinstance(read_config(os.getpid(), arguments), Unseen)
    os.mkfifo(tmp_path / "pipe")
    assert isinstance(read_config(os.getpid(), ("m", "-c", str(tmp_path / "pipe"))), Unseen)
    (tmp_path / "huge").write_bytes(b"#" * ((1 << 20) + 1))
    assert isinstance(read_config(os.getpid(), ("m", "-c", str(tmp_path / "huge"))), Unseen)


def test_the_command_line_names_the_file() -> None:
    assert config_path(["-v", "-c", "x"]) == "x"
    assert config_path(["--config-file", "y"]) == "y"
    assert config_path(["-c"]) is None
