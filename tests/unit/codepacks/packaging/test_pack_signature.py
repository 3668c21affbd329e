"""A codepack is believed when somebody who is trusted has signed just these files, and else never."""

import base64
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvmi.codepacks.packaging.key_ring import KeyRing
from qvmi.codepacks.packaging.pack_folder import MAX_FILE_BYTES, MAX_FILES, PackFolder
from qvmi.errors import BadSettings, CodepackRefused, UsageError
from tests.unit.codepacks.signed_packs import MANIFEST, NOW, Workshop, pack_folder


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop.at(tmp_path)


def test_a_signed_codepack_is_believed(workshop: Workshop) -> None:
    verified = workshop.verify()
    assert (verified.key.name, verified.expires) == ("alice", "never")
    assert verified.folder.manifest.name == "watch-init"
    assert verified.signed == "2027-01-15T08:00:00Z"


def test_openssl_and_sha256sum_agree_with_the_signature(workshop: Workshop, tmp_path: Path) -> None:
    """Oracle: OpenSSL's own command and coreutils, over the file as it lies there."""
    statement, _, signature = (
        (workshop.folder / "codepack.sig").read_bytes().rpartition(b"signature ")
    )
    (tmp_path / "statement").write_bytes(statement)
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    private = tmp_path / "keys" / "own" / "alice.pem"
    public = tmp_path / "public.pem"
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public),
            *("-in", tmp_path / "statement", "-sigfile", tmp_path / "signature"),
        ],
        check=True,
        capture_output=True,
    )
    listed = [
        line.removeprefix("file ")
        for line in statement.decode().splitlines()
        if line.startswith("file ")
    ]
    sums = "".join(f"{line.replace(' ', '  ', 1)}\n" for line in listed)
    subprocess.run(
        ["sha256sum", "--check", "--strict"],
        input=sums,
        text=True,
        cwd=workshop.folder,
        check=True,
        capture_output=True,
    )
    found = subprocess.run(
        ["find", ".", "-type", "f", "-printf", "%P\n"],
        cwd=workshop.folder,
        text=True,
        check=True,
        capture_output=True,
    )
    assert {line.split(" ", 1)[1] for line in listed} | {"codepack.sig"} == set(
        found.stdout.split()
    )


def altered(pack: Path) -> None:
    data = (pack / "rules.py").read_bytes()
    (pack / "rules.py").write_bytes(data.replace(b"runs", b"runz"))


def manifest_altered(pack: Path) -> None:
    (pack / "codepack.toml").write_text(MANIFEST.replace('"read-memory"', '"read-memory", "write"'))


def added(pack: Path) -> None:
    (pack / "data" / "more.py").write_text("")


def removed(pack: Path) -> None:
    (pack / "lazy.py").unlink()


def renamed(pack: Path) -> None:
    (pack / "lazy.py").rename(pack / "lazier.py")


def renamed_by_case(pack: Path) -> None:
    (pack / "lazy.py").rename(pack / "Lazy.py")


def exchanged(pack: Path) -> None:
    lazy, rules = (pack / "lazy.py").read_bytes(), (pack / "rules.py").read_bytes()
    (pack / "lazy.py").write_bytes(rules)
    (pack / "rules.py").write_bytes(lazy)


def moved(pack: Path) -> None:
    (pack / "lazy.py").rename(pack / "data" / "lazy.py")


def emptied(pack: Path) -> None:
    (pack / "lazy.py").write_bytes(b"")


def unsigned(pack: Path) -> None:
    (pack / "codepack.sig").unlink()


def signature_emptied(pack: Path) -> None:
    (pack / "codepack.sig").write_bytes(b"")


def other_version(pack: Path) -> None:
    (pack / "codepack.toml").write_text(MANIFEST.replace("1.2.0", "1.3.0"))


def linked(pack: Path) -> None:
    (pack / "rules.py").rename(pack.parent / "rules.py")
    (pack / "rules.py").symlink_to(pack.parent / "rules.py")


def linked_folder(pack: Path) -> None:
    (pack / "data").rename(pack.parent / "data")
    (pack / "data").symlink_to(pack.parent / "data")


def huge(pack: Path) -> None:
    os.truncate(pack / "data" / "words.txt", 1 << 40)


def pipe(pack: Path) -> None:
    os.mkfifo(pack / "pipe.py")


def not_utf_8(pack: Path) -> None:
    Path(os.fsdecode(os.fsencode(pack) + b"/\xff\xfe.py")).write_text("")


def line_break(pack: Path) -> None:
    (pack / "a\nfile 0 b.py").write_text("")


def bidirectional(pack: Path) -> None:
    (pack / "\u202eyp.rotceted").write_text("")


def hidden(pack: Path) -> None:
    (pack / ".hidden.py").write_text("")


def both_cases(pack: Path) -> None:
    (pack / "Rules.py").write_text("")


def compiled(pack: Path) -> None:
    (pack / "__pycache__").mkdir()
    (pack / "__pycache__" / "rules.cpython-311.pyc").write_bytes(b"")


def deep(pack: Path) -> None:
    pack.joinpath(*"abcdefghijkl").mkdir(parents=True)


def many(pack: Path) -> None:
    for number in range(MAX_FILES + 1):
        (pack / f"f{number}").write_bytes(b"")


def much(pack: Path) -> None:
    for number in range(5):
        (pack / f"f{number}").write_bytes(b"x" * MAX_FILE_BYTES)


ATTACKS: list[tuple[Callable[[Path], None], str]] = [
    (altered, "it is not as it was signed: rules.py altered"),
    (manifest_altered, "it is not as it was signed: codepack.toml altered"),
    (added, "it is not as it was signed: data/more.py added"),
    (removed, "it is not as it was signed: lazy.py removed"),
    (renamed, "it is not as it was signed: lazier.py added; lazy.py removed"),
    (renamed_by_case, "it is not as it was signed: Lazy.py added; lazy.py removed"),
    (exchanged, "it is not as it was signed: lazy.py, rules.py altered"),
    (moved, "it is not as it was signed: data/lazy.py added; lazy.py removed"),
    (emptied, "it is not as it was signed: lazy.py altered"),
    (unsigned, "it is not signed"),
    (signature_emptied, "codepack.sig is no signature"),
    (other_version, "its signature is of a codepack with version 1.2.0, not 1.3.0"),
    (linked, "rules.py is a symbolic link"),
    (linked_folder, "data is a symbolic link"),
    (huge, "data/words.txt is too long"),
    (pipe, "pipe.py is no file"),
    (not_utf_8, "a file's name has only"),
    (line_break, "a file's name has only"),
    (bidirectional, "a file's name has only"),
    (hidden, "a file's name has only"),
    (both_cases, "differ only in case"),
    (compiled, "__pycache__, which is no part of it"),
    (deep, "more than 8 deep"),
    (many, "more than 256 files"),
    (much, "too long: 16777216 bytes"),
]


@pytest.mark.parametrize(
    ("attack", "reason"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS]
)
def test_what_was_changed_behind_the_signature_is_refused_with_the_reason(
    workshop: Workshop, attack: Callable[[Path], None], reason: str
) -> None:
    workshop.verify()
    attack(workshop.folder)
    with pytest.raises(CodepackRefused) as caught:
        workshop.verify()
    assert reason in caught.value.problem
    str(caught.value).encode("utf-8")  # what is shown can be shown


def test_every_single_bit_of_the_signature_counts(workshop: Workshop) -> None:
    path = workshop.folder / "codepack.sig"
    good = path.read_bytes()
    refused = 0
    for place in range(len(good) - 1):  # the last one is the line's end
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CodepackRefused):
            workshop.verify()
        refused += 1
    assert refused == len(good) - 1


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 10_000),
    cut=st.integers(0, 80),
    put=st.sampled_from([b"", b"\n", b"signature ", b"file x y\n", b"\xff", b"key 0\n", b" "]),
)
def test_whatever_the_signature_file_holds_it_is_refused_by_name(
    workshop: Workshop, place: int, cut: int, put: bytes
) -> None:
    path = workshop.folder / "codepack.sig"
    good = workshop.folder.parent / "good.sig"
    if not good.exists():
        good.write_bytes(path.read_bytes())
    data = good.read_bytes()
    place %= len(data)
    changed = data[:place] + put + data[place + cut :]
    path.write_bytes(changed)
    if changed.rstrip(b"\n") == data.rstrip(b"\n"):
        return
    with pytest.raises(CodepackRefused):
        workshop.verify()


def test_the_signature_of_another_codepack_does_not_fit(workshop: Workshop, tmp_path: Path) -> None:
    other = pack_folder(tmp_path / "other", manifest=MANIFEST.replace("watch-init", "other-pack"))
    shutil.copy(workshop.folder / "codepack.sig", other)
    with pytest.raises(CodepackRefused, match="of a codepack with name watch-init, not other-pack"):
        Workshop(workshop.ring, other).verify()


def test_a_key_that_is_not_trusted_is_not_believed(workshop: Workshop) -> None:
    key = workshop.ring.new("mallory")
    workshop.sign(key="mallory")
    with pytest.raises(CodepackRefused, match=f"key {key.id}, which is not trusted"):
        workshop.verify()
    workshop.ring.trust(workshop.ring.folder / "own" / "mallory.pub")
    workshop.verify()


def test_a_key_may_not_sign_in_the_name_of_a_trusted_one(workshop: Workshop) -> None:
    alice = workshop.ring.signing_key("alice").public.id
    mallory = workshop.ring.new("mallory").id
    workshop.sign(key="mallory")
    path = workshop.folder / "codepack.sig"
    path.write_bytes(path.read_bytes().replace(mallory.encode(), alice.encode()))
    with pytest.raises(CodepackRefused, match="not by key"):
        workshop.verify()


def test_a_key_of_the_same_name_is_another(workshop: Workshop, tmp_path: Path) -> None:
    impostor = KeyRing(tmp_path / "impostor")
    impostor.new("alice")
    Workshop(impostor, workshop.folder).sign()
    with pytest.raises(CodepackRefused, match="not trusted"):
        workshop.verify()


def test_a_revoked_key_is_not_believed_any_more_and_cannot_come_back(workshop: Workshop) -> None:
    workshop.ring.revoke("alice")
    with pytest.raises(CodepackRefused, match=r"\(alice\), which was revoked"):
        workshop.verify()
    with pytest.raises(UsageError, match="was revoked"):
        workshop.ring.trust(workshop.ring.folder / "own" / "alice.pub")
    # Not even where somebody puts the file back by hand.
    own = workshop.ring.folder / "own" / "alice.pub"
    shutil.copy(own, workshop.ring.folder / "trusted" / "again.pub")
    with pytest.raises(CodepackRefused, match="was revoked"):
        workshop.verify()


def test_a_signature_holds_until_it_expires(workshop: Workshop) -> None:
    workshop.sign(valid_s=3600)
    assert workshop.verify(now=NOW + 3599).expires == "2027-01-15T09:00:00Z"
    for late in (3600, 1e8, 1e10):
        with pytest.raises(CodepackRefused, match=r"has expired \(2027-01-15T09:00:00Z\)"):
            workshop.verify(now=NOW + late)


def test_what_else_a_trusted_key_has_signed_is_no_signature_of_a_codepack(
    workshop: Workshop,
) -> None:
    """The statement begins with what it is for: a signature made for anything else does not count."""
    path = workshop.folder / "codepack.sig"
    statement = path.read_bytes().rpartition(b"signature ")[0]
    pem = (workshop.ring.folder / "own" / "alice.pem").read_bytes()
    private = load_pem_private_key(pem, password=None)
    for other in (statement.partition(b"\n")[2], b"", b"another protocol\n" + statement):
        signature = base64.b64encode(private.sign(other))  # type: ignore[union-attr, call-arg]  # an Ed25519 key
        path.write_bytes(other + b"signature " + signature + b"\n")
        with pytest.raises(CodepackRefused):
            workshop.verify()
    assert private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@pytest.mark.parametrize("place", [".", "data", "rules.py", "data/words.txt", "codepack.toml"])
def test_what_others_may_change_is_not_read_to_be_signed(tmp_path: Path, place: str) -> None:
    folder = pack_folder(tmp_path / "pack")
    changeable = folder / place
    for mode in (0o020, 0o002):
        before = changeable.stat().st_mode
        changeable.chmod(before | mode)
        with pytest.raises(CodepackRefused, match=f"others may write {changeable} "):
            PackFolder.read(folder, to_sign=True)
        assert PackFolder.read(folder).files, "whose it is does not matter once it is signed"
        changeable.chmod(before)
        assert PackFolder.read(folder, to_sign=True).files


def test_a_folder_without_a_manifest_or_with_a_bad_one_is_no_codepack(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing': there is no such folder"):
        PackFolder.read(tmp_path / "nothing")
    with pytest.raises(CodepackRefused, match=r"has no codepack\.toml"):
        PackFolder.read(tmp_path)
    (tmp_path / "codepack.toml").write_text("manifest = 2")
    with pytest.raises(BadSettings, match=r"codepack\.toml"):
        PackFolder.read(tmp_path)
