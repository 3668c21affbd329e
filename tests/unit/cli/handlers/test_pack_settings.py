"""Options of codepacks that were typed: each is checked before anything runs, and says the way out."""

import asyncio
import signal
from pathlib import Path
from typing import Final

import pytest

from qvmi.cli.declared.values import PackSetting
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.pack_running import run
from qvmi.cli.handlers.pack_settings import prepared_options
from qvmi.cli.handlers.watching import watch
from qvmi.codepacks.manifest import Manifest, built_in_manifest, parse_manifest
from qvmi.codepacks.pack_options import PackOptions
from qvmi.errors import UsageError
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.command_line import qvmi
from tests.unit.cli.handlers.test_watching import watched as watched_until
from tests.unit.cli.streams import Captured

RULES: Final = 'rule mark { strings: $m = "a mark" condition: $m }'
OTHER: Final = b"""
manifest = 1
name = "other"
version = "1.0"
entry = "m:N"
[baseline]
names = ["nc"]
depth = 3
share = 0.5
loud = false
place = "/etc"
"""


def written(folder: Path, text: str = RULES) -> str:
    path = folder / "mark.yar"
    path.write_text(text)
    return str(path)


@pytest.fixture
def rules(tmp_path: Path) -> str:
    return written(tmp_path)


def options_of(manifest: Manifest, *texts: str) -> PackOptions:
    settings = [PackSetting(manifest.name, *text.split("=", 1)) for text in texts]
    return asyncio.run(prepared(manifest, settings))


async def prepared(manifest: Manifest, settings: list[PackSetting]) -> PackOptions:
    async with prepared_options([manifest], settings) as options:
        return options[manifest.name]


def machine() -> FakeMachine:
    return FakeMachine(FakeGuest(processes=[fake_process(1, name="init")]))


def test_values_have_the_types_of_the_baseline_and_those_of_a_list_are_gathered() -> None:
    other = parse_manifest("m", OTHER)
    changed = options_of(
        other, "names=socat", "names=a, b", "depth=4", "share=1", "loud=true", "place=x=y"
    )
    assert changed.values == {
        "names": ["socat", "a, b"],
        "depth": 4,
        "share": 1.0,
        "loud": True,
        "place": "x=y",
    }
    assert options_of(other).values == other.baseline


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nmes=x", "other has no option 'nmes'; is 'names' meant?"),
        ("depth=1e9", "--set other.depth: '1e9' is no value for it: give a whole number"),
        ("share=half", "--set other.share: 'half' is no value for it: give a number"),
        ("loud=yes", "--set other.loud: 'yes' is no value for it: give true or false"),
    ],
)
def test_what_is_no_option_or_no_value_of_it_is_told(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        options_of(parse_manifest("m", OTHER), text)
    assert str(refused.value) == words


def test_an_option_of_a_codepack_without_any_or_that_does_not_run_is_told() -> None:
    with pytest.raises(UsageError, match="hidden-processes has no option 'x': it has none"):
        options_of(built_in_manifest("hidden-processes"), "x=1")
    setting = PackSetting("known-malware", "rules", "x")
    with pytest.raises(UsageError, match="no such codepack is to run; there are hidden-processes"):
        asyncio.run(prepared(built_in_manifest("hidden-processes"), [setting]))


def test_what_is_no_option_at_all_is_told_by_the_command() -> None:
    done = qvmi("watch", "--set", "known-malware=x")
    assert done.returncode == 2
    assert "give PACK.OPTION=VALUE" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rule wrong {\n condition: $no }", r"mark\.yar:2:13"),
        ("rule bare { condition: true }", "no rule has a pattern"),
    ],
)
@asynchronous
async def test_rules_that_cannot_be_used_are_refused_at_the_start(
    tmp_path: Path, text: str, words: str
) -> None:
    rules = written(tmp_path, text)
    with pytest.raises(UsageError, match=words):
        await watched(rules, packs=["known-malware"])


async def watched(*rules: str, packs: list[str] | str, only: tuple[str, ...] = ()) -> str:
    """This watches for a moment, and gives the messages."""
    output = Captured()
    settings = [PackSetting("known-malware", "rules", one) for one in rules]
    await watch(
        *(machine(), output),
        packs=packs,
        interval=0.02,
        duration_s=0.01,
        settings=settings,
        only=only,
    )
    return output.messages


@pytest.mark.parametrize(("packs", "only"), [(["known-malware"], ()), ("all", ("known-malware",))])
@asynchronous
async def test_without_rules_it_is_refused_where_it_was_named(
    packs: list[str] | str, only: tuple[str, ...]
) -> None:
    words = "known-malware cannot run: it needs rules: --set known-malware.rules=FILE-OR-FOLDER"
    with pytest.raises(UsageError) as refused:
        await watched(packs=packs, only=only)
    assert str(refused.value) == words


@asynchronous
async def test_an_option_that_was_misspelt_is_told_the_right_one() -> None:
    misspelt = PackSetting("known-malware", "rule", "x.yar")
    words = "known-malware has no option 'rule'; is 'rules' meant?"
    with pytest.raises(UsageError) as refused:
        await ran(misspelt)
    assert str(refused.value) == words
    for packs in (["known-malware"], "all"):
        with pytest.raises(UsageError) as refused:
            await watch(
                *(machine(), Captured()),
                packs=packs,
                interval=0.02,
                duration_s=0.01,
                settings=[misspelt],
            )
        assert str(refused.value) == words


@asynchronous
async def test_without_rules_all_leaves_it_out_and_says_so() -> None:
    messages = " ".join((await watched(packs="all")).split())
    assert "qvmi: known-malware is left out: it needs rules: --set" in messages
    assert "container-escape; Ctrl-C" in messages


@asynchronous
async def test_with_rules_it_runs_with_the_others(rules: str) -> None:
    output = Captured()
    code = await watched_until(
        machine(),
        output,
        lambda: "known-malware: sight full" in output.result,
        end=signal.SIGINT,
        packs="all",
        settings=[PackSetting("known-malware", "rules", rules)],
    )
    assert code is ExitCode.FINE


async def ran(*settings: PackSetting) -> ExitCode:
    return await run(
        machine(),
        Captured(),
        action="run",
        what="known-malware",
        key=None,
        days=None,
        keys=None,
        rounds=None,
        interval=0.005,
        policy=None,
        settings=settings,
    )


@asynchronous
async def test_one_that_is_run_by_hand_takes_the_same(rules: str) -> None:
    given = PackSetting("known-malware", "rules", rules)
    assert await ran(given, PackSetting("known-malware", "look_megabytes", "1")) is ExitCode.FINE
    with pytest.raises(UsageError, match="known-malware cannot run: it needs rules"):
        await ran()


def test_only_run_takes_options() -> None:
    done = qvmi("pack", "list", "--set", "known-malware.rules=x")
    assert (done.returncode, "--set: they are for run" in done.stderr) == (2, True)
