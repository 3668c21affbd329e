"""A policy file grants what it says and no more; what is wrong in it is told with its place."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.errors import BadSettings
from qvmi.policy import READ_ONLY, AddressRange, Grant, Space, parse_policies, read_policies

WHOLE = b"""
version = 1

[default]
read-registers = true

[codepacks.hidden-processes]
read-memory = true

[codepacks.responder]
read-memory = { physical = ["0x1000+0x1000", "4294967296+1G"], bytes-per-second = "64M" }
pause = { per-second = 2, longest-s = 0.05 }
breakpoint = false

[codepacks.responder.write]
virtual = ["0xffff888000000000+64K"]
per-second = 0.5
bytes-per-second = 4096
"""


def test_reads_every_grant_with_its_limits() -> None:
    policies = parse_policies("policy.toml", WHOLE)
    responder = policies.of("responder")
    assert responder.grants == {Grant.READ_MEMORY, Grant.PAUSE, Grant.WRITE}
    read, pause, write = map(responder.limits_of, (Grant.READ_MEMORY, Grant.PAUSE, Grant.WRITE))
    assert read.ranges == (
        AddressRange(Space.PHYSICAL, 0x1000, 0x1000),
        AddressRange(Space.PHYSICAL, 1 << 32, 1 << 30),
    )
    assert (read.bytes_per_second, read.per_second) == (67108864.0, None)
    assert (pause.per_second, pause.longest_s, pause.ranges) == (2.0, 0.05, None)
    assert write.ranges == (AddressRange(Space.VIRTUAL, 0xFFFF888000000000, 65536),)
    assert (write.per_second, write.bytes_per_second) == (0.5, 4096.0)


def test_a_codepack_that_is_named_has_its_own_table_and_nothing_of_the_default() -> None:
    policies = parse_policies("policy.toml", WHOLE)
    assert policies.of("hidden-processes").grants == {Grant.READ_MEMORY}
    assert policies.of("hidden-processes").allows_all(Grant.READ_MEMORY)
    assert policies.of("another").grants == {Grant.READ_REGISTERS}


def test_without_a_word_about_it_a_codepack_may_only_read() -> None:
    policies = parse_policies("policy.toml", b"version = 1\n")
    assert policies.of("anything") == READ_ONLY
    assert READ_ONLY.grants == {Grant.READ_MEMORY, Grant.READ_REGISTERS}


WRONG = [
    (b"", None, "version", "write version = 1"),
    (b"version = 2", 1, "version", "write version = 1"),
    (b"version = true", 1, "version", "write version = 1"),
    (b"version = 1\nversion = 1\n[a]", 2, "", "no TOML"),
    (b"version = 1\n[codepacks", None, "", "(at end of document)"),
    (b"version = 1\n\xff = 1", 2, "", "save it as UTF-8"),
    (b"version = 1\n[codepack.a]\nwrite = true", 2, "codepack", "'codepacks' meant"),
    (b"version = 1\ncodepacks = 3", 2, "codepacks", "no table"),
    (b"version = 1\n[codepacks.'../a']", 2, "codepacks.../a", "no codepack's name"),
    (b"version = 1\n[codepacks.A]\n", 2, "codepacks.A", "no codepack's name"),
    (b"version = 1\n[codepacks]\na = true", 3, "codepacks.a", "[codepacks.a]"),
    (b"version = 1\n[codepacks.a]\nwrit = true", 3, "codepacks.a.writ", "'write' meant"),
    (b"version = 1\n[default]\n\nroot = true", 4, "default.root", "there are read-memory"),
    (b"version = 1\n[default]\nwrite = 1", 3, "default.write", "write true, false or a table"),
    (b"version = 1\n[default]\nwrite = 'yes'", 3, "default.write", "write true, false or a table"),
    (b"version = 1\n[default]\nwrite = {}", 3, "default.write", "write true if none are meant"),
    (b"version = 1\n[default.write]", 2, "default.write", "write true if none are meant"),
    (b"version = 1\n[default]\nnic = {physical=['0+1']}", 3, "default.nic.physical", "per-second"),
    (b"version = 1\n[default]\npause = {longest = 1}", 3, "default.pause.longest", "'longest-s'"),
    (b"version = 1\n[default]\npause = {longest-s = 0}", 3, "default.pause.longest-s", "above 0"),
    (b"version = 1\n[default]\npause = {longest-s = nan}", 3, "default.pause.longest-s", "above 0"),
    (b"version = 1\n[default]\npause = {longest-s = inf}", 3, "default.pause.longest-s", "above 0"),
    (b"version = 1\n[default]\npause = {longest-s = true}", 3, "default.pause.longest-s", "float"),
    (
        b"version = 1\n[default]\npause = {per-second = '1'}",
        3,
        "default.pause.per-second",
        "expected `float`, got",
    ),
    (
        b"version = 1\n[default.disk]\nbytes-per-second = -1",
        3,
        "default.disk.bytes-per-second",
        "64M",
    ),
    (
        b"version = 1\n[default.disk]\nbytes-per-second = '1P'",
        3,
        "default.disk.bytes-per-second",
        "64M",
    ),
    (
        b"version = 1\n[default.disk]\nbytes-per-second = 0",
        3,
        "default.disk.bytes-per-second",
        "64M",
    ),
    (
        b"version = 1\n[default.write]\nphysical = []",
        3,
        "default.write.physical",
        "leave the key out",
    ),
    (
        b"version = 1\n[default.write]\nphysical = ['1-2']",
        3,
        "default.write.physical",
        "START+SIZE",
    ),
    (b"version = 1\n[default.write]\nphysical = ['0+0']", 3, "default.write.physical", "no range"),
    (b"version = 1\n[default.write]\nphysical = '0+1'", 3, "default.write.physical", "array"),
    (b"version = 1\n[default.write]\nphysical = [1]", 3, "default.write.physical[0]", "str"),
    (
        b"version = 1\n[default.write]\nvirtual = ['0xffffffffffffffff+2']",
        3,
        "default.write.virtual",
        "no range of 64-bit addresses",
    ),
]


@pytest.mark.parametrize(("data", "line", "key", "words"), WRONG)
def test_what_cannot_be_right_is_told_with_file_line_key_and_way_out(
    data: bytes, line: int | None, key: str, words: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        parse_policies("etc/policy.toml", data)
    error = caught.value
    assert (error.path, error.line, error.key) == ("etc/policy.toml", line, key)
    assert words in error.problem
    assert str(error).startswith("etc/policy.toml")
    assert key in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"version = 1\nx = " + b"[" * 5000,
        b"version = " + b"1" * 5000,
        b"version = 0x" + b"f" * 5000,
        b"version." + b"a." * 100_000 + b"a = 1",
        b"version" + rb'."\""' * 20_000 + b" = 1",
        b"version = " + b"{a.b = " * 200 + b"1" + b"}" * 200,
        b"version = 1\n#" + b"x" * (1 << 20),
        b"version = 1\n[default.pause]\nper-second = 1" + b"0" * 400,
        b"version = 1\n[default.write]\nphysical = [" + b'"0+1",' * 300 + b"]",
        b"version = 1\n" + b"".join(b"[codepacks.a%d]\n" % number for number in range(1100)),
    ],
    ids=["deep", "digits", "hex", "parts", "quoted", "tables", "long", "huge", "ranges", "packs"],
)
def test_a_file_beyond_all_bounds_is_refused(data: bytes) -> None:
    with pytest.raises(BadSettings):
        parse_policies("policy.toml", data)


def test_a_file_that_is_not_there_is_no_empty_policy(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="No such file"):
        read_policies(tmp_path / "policy.toml")
    with pytest.raises(BadSettings, match="directory"):
        read_policies(tmp_path)
    good = tmp_path / "good.toml"
    good.write_bytes(WHOLE)
    assert read_policies(good) == parse_policies("", WHOLE)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_even_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policy.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    with pytest.raises(BadSettings, match=f"is a {kind} and no regular file"):
        read_policies(path)


@pytest.mark.parametrize(
    ("file", "folder", "refused"),
    [
        (0o644, 0o755, ""),
        (0o400, 0o700, ""),
        (0o644, 0o1777, ""),
        (0o664, 0o755, r"others may write .*policy\.toml \(mode 0664\): chmod go-w .*policy\.toml"),
        (0o602, 0o755, r"others may write .*policy\.toml"),
        (0o644, 0o775, r"others may write .*rules \(mode 0775\): chmod go-w .*rules$"),
        (0o644, 0o757, r"others may write .*rules"),
    ],
)
@pytest.mark.parametrize("by", ["name", "link"])
def test_a_policy_that_others_can_write_or_exchange_is_none(
    tmp_path: Path, file: int, folder: int, refused: str, by: str
) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    path = rules / "policy.toml"
    path.write_bytes(WHOLE)
    path.chmod(file)
    rules.chmod(folder)
    named = path
    if by == "link":
        named = tmp_path / "link"
        named.symlink_to(path)
    if refused:
        with pytest.raises(BadSettings, match=refused):
            read_policies(named)
    else:
        assert read_policies(named) == parse_policies("", WHOLE)


def test_a_policy_of_another_user_is_none(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "policy.toml"
    path.write_bytes(WHOLE)
    os.chown(path, 12345, -1)
    with pytest.raises(BadSettings, match=r"belongs to uid 12345, who may change it: chown 0 "):
        read_policies(path)


def test_a_name_of_no_codepack_is_told_with_the_one_that_may_be_meant() -> None:
    policies = parse_policies("policy.toml", WHOLE)
    assert policies.unmatched(["hidden-processes", "responder"]) == {}
    assert policies.unmatched(["hidden-processes", "respond"]) == {
        "responder": "; is 'respond' meant?"
    }
    assert policies.unmatched(["hidden-processes"]) == {"responder": "; there are hidden-processes"}


WORDS = st.sampled_from(
    [
        "version",
        "=",
        "1",
        "[",
        "]",
        "\n",
        "default",
        "codepacks",
        ".",
        "write",
        "{",
        "}",
        "true",
        "'0x1000+1'",
        "physical",
        "per-second",
        "bytes-per-second",
        "nan",
        "'64M'",
        ",",
        "a",
        " ",
        "#",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=30).map("".join))
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(text: str) -> None:
    for data in (text, f"version = 1\n{text}", f"version = 1\n[default]\nwrite = {text}"):
        try:
            policies = parse_policies("policy.toml", data.encode())
        except BadSettings as error:
            assert error.problem  # noqa: PT017 - both outcomes are right, and this is what one must hold
        else:
            assert policies.of("other").grants <= set(Grant)
