"""The files for mosquitto."""

import base64
import hashlib

from qvmi.bus.account import Account
from qvmi.bus.mosquitto_config import ACCESS_FILE, CONFIG_FILE, PASSWORD_FILE, files
from qvmi.bus.place import Place
from qvmi.bus.topic import TopicFilter

PACK = Account.of_codepack("web", "pack")
READER = Account.of_reader("watch", TopicFilter("web"))


def config(*, root: bool = False) -> list[str]:
    return files([PACK, READER], root=root)[CONFIG_FILE].splitlines()


def test_the_only_listener_is_a_unix_socket() -> None:
    listeners = [line for line in config() if line.startswith(("listener", "port", "bind"))]
    assert listeners == ["listener 0 mqtt.sock"]


def test_nobody_enters_without_an_account() -> None:
    assert "allow_anonymous false" in config()
    assert f"password_file {PASSWORD_FILE}" in config()
    assert f"acl_file {ACCESS_FILE}" in config()


def test_mosquitto_stays_root_only_where_it_begins_as_root() -> None:
    assert "user root" in config(root=True)
    assert not [line for line in config() if line.startswith("user")]


def test_a_codepack_may_write_below_its_name_and_a_reader_read_its_machine() -> None:
    assert files([PACK, READER], root=False)[ACCESS_FILE] == (
        "user web.pack\ntopic write qvmi/v1/web/pack/+\n"
        "topic write qvmi/v1/web/pack/request/+\n\nuser watch\ntopic read qvmi/v1/web/#\n\n"
    )


def test_passwords_are_salted_hashes_of_mosquittos_own_form() -> None:
    lines = files([PACK, PACK], root=False)[PASSWORD_FILE].splitlines()
    assert lines[0] != lines[1]
    for line in lines:
        user, _, fields = line.partition(":")
        kind, rounds, salt, digest = fields[1:].split("$")
        assert (user, fields[0], kind) == ("web.pack", "$", "7")
        expected = hashlib.pbkdf2_hmac(
            "sha512", PACK.secret.encode(), base64.b64decode(salt), int(rounds)
        )
        assert base64.b64decode(digest) == expected


def test_no_file_holds_a_secret() -> None:
    for text in files([PACK, READER], root=False).values():
        assert PACK.secret not in text
        assert READER.secret not in text


def test_a_listener_of_a_network_has_an_address_and_the_same_bounds() -> None:
    place = Place(address="10.77.0.1", port=1883)
    lines = files([PACK], root=False, place=place)[CONFIG_FILE].splitlines()
    assert [line for line in lines if line.startswith("listener")] == [
        "listener 0 mqtt.sock",
        "listener 1883 10.77.0.1",
    ]
    assert lines.count("max_connections 256") == 2
    assert lines.count("use_username_as_clientid true") == 2
    assert "allow_anonymous false" in lines
