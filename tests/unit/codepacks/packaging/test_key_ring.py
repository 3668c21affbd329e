"""Keys: who can read them, who can add to them, and what becomes of revoked ones."""

import os
import subprocess
from pathlib import Path

import pytest

from qvmi.codepacks.packaging.key_ring import KeyRing, KeyStanding
from qvmi.errors import UsageError


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys")


def test_a_private_key_is_its_owners_alone_whatever_the_umask(ring: KeyRing) -> None:
    before = os.umask(0)
    try:
        ring.new("alice")
    finally:
        os.umask(before)
    modes = subprocess.run(
        ["find", ring.folder, "-printf", "%m %P\n"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert "600 own/alice.pem" in modes
    assert "700 own" in modes


def test_openssl_knows_the_key(ring: KeyRing) -> None:
    key = ring.new("alice")
    path = ring.folder / "own" / "alice.pem"
    said = subprocess.run(
        ["openssl", "pkey", "-in", path, "-text", "-noout"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("ED25519 Private-Key:")
    digits = said.partition("pub:")[2].replace(":", "").split()
    assert bytes.fromhex("".join(digits)) == key.raw
    assert subprocess.run(
        ["sha256sum"], input=key.raw, capture_output=True, check=True
    ).stdout.startswith(key.id.encode())


def test_two_keys_are_not_the_same_and_none_is_overwritten(ring: KeyRing) -> None:
    first = ring.new("alice")
    assert ring.new("bob").id != first.id
    with pytest.raises(UsageError, match="there already"):
        ring.new("alice")
    assert ring.signing_key("alice").public == first


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a b", "-a", "a" * 64, "a\n", "\0"])
def test_a_name_that_could_leave_the_folder_is_none(ring: KeyRing, name: str) -> None:
    with pytest.raises(UsageError):
        ring.new(name)
    with pytest.raises(UsageError):
        ring.signing_key(name)
    assert not ring.folder.exists()


def test_a_private_key_that_others_can_read_is_not_used(ring: KeyRing) -> None:
    ring.new("alice")
    (ring.folder / "own" / "alice.pem").chmod(0o640)
    with pytest.raises(UsageError, match="others may read"):
        ring.signing_key("alice")


@pytest.mark.parametrize("place", ["keys", "keys/trusted"])
def test_a_folder_where_others_can_put_keys_trusts_nobody(
    ring: KeyRing, tmp_path: Path, place: str
) -> None:
    ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    (tmp_path / place).chmod(0o777)
    with pytest.raises(UsageError, match="others may change"):
        ring.keys(KeyStanding.TRUSTED)


def test_a_key_that_others_can_change_is_not_trusted(ring: KeyRing) -> None:
    key = ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    (ring.folder / "trusted" / f"{key.id}.pub").chmod(0o666)
    with pytest.raises(UsageError, match="others may change"):
        ring.keys(KeyStanding.TRUSTED)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_users_is_not_trusted(ring: KeyRing) -> None:
    key = ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    os.chown(ring.folder / "trusted" / f"{key.id}.pub", 65534, 65534)
    with pytest.raises(UsageError, match="belongs to another user"):
        ring.keys(KeyStanding.TRUSTED)


def test_a_link_among_the_keys_is_not_followed(ring: KeyRing, tmp_path: Path) -> None:
    key = ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    trusted = ring.folder / "trusted" / f"{key.id}.pub"
    trusted.rename(tmp_path / "elsewhere.pub")
    trusted.symlink_to(tmp_path / "elsewhere.pub")
    with pytest.raises(UsageError, match="cannot be read"):
        ring.keys(KeyStanding.TRUSTED)


@pytest.mark.parametrize(
    "text",
    ["", "x", "qvmi-ed25519 AAAA alice", "qvmi-ed25519 ! alice", "ssh-ed25519 AAAA alice", "x" * 9999,
     "qvmi-ed25519 " + "A" * 43 + "= A", "qvmi-ed25519 " + "A" * 43 + "= a b"],
)  # fmt: skip
def test_what_is_no_key_cannot_be_trusted(ring: KeyRing, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.pub").write_text(text)
    with pytest.raises(UsageError, match=r"bad\.pub|key name|3 bytes"):
        ring.trust(tmp_path / "bad.pub")


def test_what_is_no_private_key_cannot_sign(ring: KeyRing) -> None:
    ring.new("alice")
    path = ring.folder / "own" / "alice.pem"
    rsa = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "X25519"], capture_output=True, check=True
    ).stdout
    locked = subprocess.run(
        ["openssl", "pkey", "-in", path, "-aes256", "-passout", "pass:x"],
        capture_output=True,
        check=True,
    ).stdout
    for data in (b"", b"\xff", rsa, locked):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"private key|Ed25519"):
            ring.signing_key("alice")


def test_revoking_is_by_name_or_id_and_never_by_guess(ring: KeyRing, tmp_path: Path) -> None:
    alice = ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    other = KeyRing(tmp_path / "other")
    namesake = other.new("alice")
    ring.trust(other.folder / "own" / "alice.pub")
    with pytest.raises(UsageError, match="2 keys"):
        ring.revoke("alice")
    with pytest.raises(UsageError, match="no key is called"):
        ring.revoke("bob")
    assert ring.revoke(namesake.id) == namesake
    assert set(ring.keys(KeyStanding.TRUSTED)) == {alice.id}
    assert set(ring.keys(KeyStanding.REVOKED)) == {namesake.id}
    assert ring.revoke(alice.id).id == alice.id
    assert ring.revoke(alice.id).id == alice.id  # again is no error


def test_where_there_are_no_keys_nobody_is_trusted(ring: KeyRing) -> None:
    assert [dict(ring.keys(standing)) for standing in KeyStanding] == [{}, {}, {}]


@pytest.mark.parametrize("what", ["pipe", "link to a device"])
def test_what_is_no_file_is_no_key_and_is_not_waited_for(ring: KeyRing, what: str) -> None:
    ring.new("alice")
    ring.trust(ring.folder / "own" / "alice.pub")
    for place in (ring.folder / "trusted" / "evil.pub", ring.folder / "evil.pub"):
        if what == "pipe":
            os.mkfifo(place, 0o600)
        else:
            place.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"evil\.pub (is no file|cannot be read)"):
        ring.keys(KeyStanding.TRUSTED)
    with pytest.raises(UsageError, match=r"evil\.pub (is no file|cannot be read)"):
        ring.trust(ring.folder / "evil.pub")
