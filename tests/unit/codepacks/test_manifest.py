"""A manifest says what a codepack needs; what cannot be right in it is told with its place."""

import pytest

from qvmi.cli.declared.words import PACKS
from qvmi.codepacks.manifest import Restart, built_in_manifest, parse_manifest
from qvmi.errors import BadSettings, CodepackRefused, UsageError
from qvmi.policy import Grant
from tests.built_in_packs import made

WHOLE = """\
manifest = 1
name = "a-pack"
version = "1.2.0"
entry = "a.b:Pack"
summary = "what it does"
grants = ["read-memory", "pause"]

[requires]
qvmi = ">=0.1,<2"
os = ["linux", "windows"]
architectures = ["aarch64"]

[management]
restart = "never"
max-restarts = 0
interval-s = 0.5
deadline-s = 2
memory = "64M"

[baseline]
words = ["a", "b"]
limit = 3
"""
LEAST = 'manifest = 1\nname = "a"\nversion = "1"\nentry = "a:A"\n'


def test_reads_everything_that_is_said() -> None:
    manifest = parse_manifest("codepack.toml", WHOLE.encode())
    assert (manifest.name, manifest.version, manifest.entry) == ("a-pack", "1.2.0", "a.b:Pack")
    assert manifest.grants == {Grant.READ_MEMORY, Grant.PAUSE}
    assert manifest.management.restart is Restart.NEVER
    assert manifest.management.memory_bytes == 67108864
    assert (manifest.management.interval_s, manifest.management.deadline_s) == (0.5, 2.0)
    assert manifest.baseline == {"words": ["a", "b"], "limit": 3}


def test_needs_nothing_unless_it_says_so() -> None:
    manifest = parse_manifest("codepack.toml", LEAST.encode())
    assert (manifest.grants, manifest.baseline) == (frozenset(), {})
    assert manifest.management.memory_bytes == 268435456


WRONG = [
    ("manifest = 1", "", None, "manifest", "is missing"),
    ("manifest = 1", "manifest = 2", 1, "manifest", "write 1"),
    ("manifest = 1", "manifest = '1'", 1, "manifest", "expected `int`"),
    ('"a-pack"', '"A"', 2, "name", "a-z, 0-9 and -"),
    ('"a-pack"', '"../a"', 2, "name", "a-z, 0-9 and -"),
    ('"1.2.0"', '"new"', 3, "version", "such as 1.2.0"),
    ('"1.2.0"', '"1.2.0\\nx"', 3, "version", "such as 1.2.0"),
    ('"a.b:Pack"', '"a.b"', 4, "entry", "module:Name"),
    ('"a.b:Pack"', '"../a:Pack"', 4, "entry", "module:Name"),
    ('"a.b:Pack"', '".os:system"', 4, "entry", "module:Name"),
    ('"what it does"', '"\\u001b[2J"', 5, "summary", "no line"),
    ('"pause"]', '"root"]', 6, "grants[1]", "invalid enum value 'root'"),
    ('"pause"]', '"read-memory"]', 6, "grants", "twice"),
    ("summary", "sumary", 5, "sumary", "is 'summary' meant?"),
    ("[requires]", "[require]", 8, "require", "is 'requires' meant?"),
    ('qvmi = ">=0.1,<2"', 'qvmi = "~1"', 9, "requires.qvmi", ">=0.1"),
    ('os = ["linux", "windows"]', "os = []", 10, "requires.os", "is empty"),
    ('["linux", "windows"]', '["plan9"]', 10, "requires.os[0]", "invalid enum value 'plan9'"),
    ('["aarch64"]', '["riscv"]', 11, "requires.architectures[0]", "invalid enum value"),
    ('"never"', '"sometimes"', 14, "management.restart", "invalid enum value"),
    ("max-restarts = 0", "max-restarts = -1", 15, "management.max-restarts", "from 0"),
    ("interval-s = 0.5", "interval-s = 0", 16, "management.interval-s", "seconds from"),
    ("interval-s = 0.5", "interval-s = nan", 16, "management.interval-s", "seconds from"),
    ("interval-s = 0.5", "interval = 1", 13, "management", "'interval' that is not known"),
    ("deadline-s = 2", "deadline-s = 1e9", 17, "management.deadline-s", "seconds from"),
    ('"64M"', '"64"', 18, "management.memory", "such as 256M"),
    ('"64M"', '"0M"', 18, "management.memory", "such as 256M"),
    ("limit = 3", "interval_s = 3", 22, "baseline.interval_s", "cannot be an option's name"),
    ("limit = 3", "'a b' = 3", 22, "baseline.a b", "cannot be an option's name"),
    ("limit = 3", "limit = {}", 20, "baseline[...]", "expected"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), WRONG)
def test_what_cannot_be_right_is_told_with_line_key_and_way_out(
    old: str, new: str, line: int | None, key: str, words: str
) -> None:
    assert old in WHOLE
    with pytest.raises(BadSettings) as caught:
        parse_manifest("codepack.toml", WHOLE.replace(old, new, 1).encode())
    assert (caught.value.line, caught.value.key) == (line, key)
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("wanted", "version", "fits"),
    [
        (">=0.1", "0.1.0", True),
        (">=0.1.1", "0.1.0", False),
        (">=0.1", "0.10.0", True),
        (">=0.9", "0.10.0", True),
        (">=1", "1.0.0", True),
        (">=0.1,<1", "1.0.0", False),
        (">=0.1, <1", "0.9.9", True),
        ("<0.1", "0.1.0", False),
        (">=0.1", "0.1.0.dev3", True),
    ],
)
def test_knows_which_versions_of_qvmi_it_runs_on(wanted: str, version: str, fits: bool) -> None:  # noqa: FBT001 - a column
    manifest = parse_manifest("a", f'{LEAST}[requires]\nqvmi = "{wanted}"'.encode())
    if fits:
        manifest.require_qvmi(version)
    else:
        with pytest.raises(CodepackRefused, match="needs qvmi"):
            manifest.require_qvmi(version)


def test_is_not_run_on_a_guest_that_it_is_not_made_for() -> None:
    manifest = parse_manifest("a", f'{LEAST}[requires]\narchitectures = ["aarch64"]'.encode())
    manifest.require_guest("linux", "aarch64")
    for guest in (("linux", "x86_64"), ("windows", "aarch64")):
        with pytest.raises(CodepackRefused, match=f"the guest is {' on '.join(guest)}"):
            manifest.require_guest(*guest)


def test_every_codepack_that_comes_with_qvmi_is_what_its_manifest_says() -> None:
    for name in PACKS:
        manifest = built_in_manifest(name)
        pack = made(name, manifest.management.interval_s)
        assert (manifest.name, manifest.grants) == (pack.name, pack.grants)


@pytest.mark.parametrize("name", ["no-such", "../manifests/hidden-processes", ""])
def test_what_does_not_come_with_qvmi_has_no_manifest(name: str) -> None:
    with pytest.raises(UsageError, match="does not come with qvmi"):
        built_in_manifest(name)
