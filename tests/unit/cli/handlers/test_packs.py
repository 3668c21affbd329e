"""Codepacks and keys at the command line: signed, verified, refused with the reason."""

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qvmi.cli.declared.values import PackSetting
from qvmi.cli.declared.words import PACKS
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.pack_running import run
from qvmi.cli.handlers.watching import watch
from qvmi.errors import BadSettings, CodepackRefused, PolicyDenied, UsageError
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.command_line import DEADLINE_S, qvmi, qvmi_document
from tests.unit.cli.streams import Captured
from tests.unit.codepacks.signed_packs import MANIFEST, pack_folder

INIT = fake_process(1, name="init")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def signed(tmp_path: Path, keys: Path, *, manifest: str = MANIFEST) -> Path:
    """Makes a key, trusts it, and signs a codepack with it, all at the command line."""
    folder = pack_folder(tmp_path / "pack", manifest=manifest)
    for arguments in (
        ("keys", "new", "alice"),
        ("keys", "trust", f"{keys}/own/alice.pub"),
        ("pack", "sign", str(folder), "--key", "alice"),
    ):
        done = qvmi(*arguments, "--keys", str(keys))
        assert done.returncode == 0, done.stderr
    return folder


def test_a_codepack_goes_from_a_new_key_to_verified_and_refused(tmp_path: Path, keys: Path) -> None:
    folder = signed(tmp_path, keys)
    verified = qvmi_document("pack", "verify", str(folder), "--keys", str(keys))
    listed = qvmi_document("keys", "list", "--keys", str(keys))["items"]
    assert {key["standing"] for key in listed} == {"own", "trusted"}
    assert (verified["verified"], verified["files"]) == (True, 5)
    assert {key["id"] for key in listed} == {verified["key"]}
    (folder / "rules.py").write_text("evil = True\n")
    done = qvmi("pack", "verify", str(folder), "--keys", str(keys))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "qvmi: codepack watch-init: it is not as it was signed: rules.py altered\n"
    )
    done = qvmi("--json", "pack", "verify", str(folder), "--keys", str(keys))
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "verified": False,
        "problem": "it is not as it was signed: rules.py altered",
    }


def test_revoked_at_the_command_line_is_not_believed(tmp_path: Path, keys: Path) -> None:
    folder = signed(tmp_path, keys)
    assert qvmi("keys", "revoke", "alice", "--keys", str(keys)).returncode == 0
    done = qvmi("pack", "verify", str(folder), "--keys", str(keys))
    assert done.returncode == 1
    assert "which was revoked" in done.stderr


def test_keys_are_in_the_folder_of_the_configuration_unless_told_otherwise(tmp_path: Path) -> None:
    done = qvmi("keys", "new", "alice", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0
    assert (tmp_path / "qvmi" / "keys" / "own" / "alice.pem").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pack", "verify"), "give its folder"),
        (("pack", "sign", "x"), "qvmi keys new NAME"),
        (("pack", "verify", "x", "--key", "a"), "they are for pack sign"),
        (("pack", "list", "x"), "takes nothing"),
        (("keys", "list", "x"), "takes nothing"),
        (("keys", "new"), "its name"),
        (("keys", "new", "../x"), "a-z, 0-9 and -"),
        (("keys", "trust", "/no/such/file"), "there is no /no/such/file"),
        (("keys", "new", "bob", "--keys", __file__), f"{__file__} is no folder"),
        (("keys", "trust", str(Path(__file__).with_name("__init__.py"))), "give the .pub file"),
        (("keys", "revoke", "nobody"), "no key is called 'nobody': qvmi keys list"),
        (("pack", "info"), "give its folder, or a name: hidden-processes"),
        (("pack", "info", "hiden-processes"), "is 'hidden-processes' meant?"),
        (("pack", "info", str(Path(__file__).parent)), "has no codepack.toml"),
        (("doctor", "--bridge", "br0"), "name it with --qmp"),
        (("pack", "buy"), "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_way_out(
    keys: Path, arguments: tuple[str, ...], words: str
) -> None:
    named = () if "--keys" in arguments or "doctor" in arguments else ("--keys", str(keys))
    done = qvmi(*arguments, *named)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_what_comes_with_qvmi_tells_what_it_needs() -> None:
    listed, *others = qvmi_document("pack", "list")["items"]
    assert [listed["name"], *(one["name"] for one in others)] == [*PACKS]
    assert qvmi_document("pack", "info", "hidden-processes") == listed
    assert (listed["name"], listed["grants"]) == ("hidden-processes", ["read-memory"])
    assert listed["management"]["restart"] == "on-failure"


def test_info_says_what_is_only_enforced_in_a_process_of_its_own() -> None:
    enforced = qvmi_document("pack", "info", "hidden-processes")["enforced"]
    assert enforced["run"].keys() == enforced["here"].keys() == enforced["process"].keys()
    assert enforced["here"]["memory"] == "not enforced"
    assert enforced["process"]["memory"] == "RLIMIT_DATA of its process"
    shown = qvmi("pack", "info", "hidden-processes").stdout
    assert "enforced.here.deadline-s" in shown


def test_info_says_that_it_only_repeats_what_a_folder_says(tmp_path: Path) -> None:
    done = qvmi("pack", "info", str(pack_folder(tmp_path / "pack")))
    assert (done.returncode, done.stderr.count("qvmi pack verify")) == (0, 1)
    assert "watch-init" in done.stdout


async def watched(
    tmp_path: Path, keys: Path, *, policy: str | None = None, only: tuple[str, ...] = ()
) -> tuple[ExitCode, Captured]:
    """Watches with the signed codepack too, until there is an alert, and ends it by Ctrl-C then."""
    output = Captured(json=True)
    rules = tmp_path / "policy.toml"
    if policy is not None:
        rules.write_text(policy)
    watching = asyncio.create_task(
        watch(
            FakeMachine(FakeGuest(processes=[INIT])),
            output,
            packs=["hidden-processes"],
            interval=0.02,
            duration_s=None,
            load=[str(tmp_path / "pack")],
            policy=None if policy is None else str(rules),
            keys=str(keys),
            only=only,
        )
    )
    async with asyncio.timeout(DEADLINE_S):
        while '"alert"' not in output.result and not watching.done():  # noqa: ASYNC110 - a stream tells nobody
            await asyncio.sleep(0.02)
        if not watching.done():
            os.kill(os.getpid(), signal.SIGINT)
        return await watching, output


FAST = MANIFEST.replace("[baseline]", "[management]\ninterval-s = 0.02\n\n[baseline]")


@asynchronous
async def test_a_signed_codepack_of_somebody_elses_raises_its_alerts(
    tmp_path: Path, keys: Path
) -> None:
    signed(tmp_path, keys, manifest=FAST)
    code, output = await watched(tmp_path, keys)
    documents = [json.loads(line) for line in output.result.splitlines()]
    alerts = [one for one in documents if one["kind"] == "alert"]
    assert code is ExitCode.FOUND
    assert [(one["codepack"], one["body"]["finding"]["claim"]) for one in alerts] == [
        ("watch-init", "init runs")
    ]


@asynchronous
async def test_nothing_of_an_altered_codepack_is_run(tmp_path: Path, keys: Path) -> None:
    folder = signed(tmp_path, keys)
    proof = tmp_path / "it-ran"
    (folder / "detector.py").write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(CodepackRefused, match=r"detector\.py altered"):
        await watched(tmp_path, keys)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("policy", "error", "words"),
    [
        ("version = 1\n[codepacks.watch-init]\n", PolicyDenied, "needs grant 'read-memory'"),
        (
            "version = 1\n[codepacks.watch-init]\nread-memory = {physical=['0+4K']}\n",
            PolicyDenied,
            "only within limits",
        ),
        ("version = 1\n[codepack]\n", BadSettings, "line 2: codepack is not known"),
    ],
)
@asynchronous
async def test_the_policy_file_decides_what_runs(
    tmp_path: Path, keys: Path, policy: str, error: type[Exception], words: str
) -> None:
    signed(tmp_path, keys)
    with pytest.raises(error, match=words):
        await watched(tmp_path, keys, policy=policy)


@pytest.mark.parametrize(
    ("only", "watching"),
    [
        ((), "hidden-processes, watch-init"),
        (("watch-init",), "watch-init"),
        (("watch-init", "hidden-processes"), "hidden-processes, watch-init"),
    ],
)
@asynchronous
async def test_only_those_codepacks_run_that_are_asked_for(
    tmp_path: Path, keys: Path, only: tuple[str, ...], watching: str
) -> None:
    signed(tmp_path, keys, manifest=FAST)
    code, output = await watched(tmp_path, keys, only=only)
    speakers = {json.loads(line)["codepack"] for line in output.result.splitlines()}
    assert f": {watching}; Ctrl-C ends it" in output.messages
    assert speakers <= set(watching.split(", "))
    assert code is ExitCode.FOUND


@asynchronous
async def test_an_option_of_a_signed_codepack_can_be_set_by_whoever_runs_it(
    tmp_path: Path, keys: Path
) -> None:
    signed(tmp_path, keys)
    output = Captured(json=True)
    code = await run(
        FakeMachine(FakeGuest(processes=[INIT, fake_process(2, name="other")])),
        output,
        action="run",
        what=str(tmp_path / "pack"),
        key=None,
        days=None,
        keys=str(keys),
        rounds=2,
        interval=0.01,
        policy=None,
        settings=[PackSetting("watch-init", "pid", "2")],
    )
    (item,) = json.loads(output.result)["items"]
    assert (code, item["finding"]["claim"]) == (ExitCode.FOUND, "other runs")


@asynchronous
async def test_a_codepack_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, keys: Path
) -> None:
    signed(tmp_path, keys)
    with pytest.raises(UsageError, match=r"--only watch-int: .*; is 'watch-init' meant"):
        await watched(tmp_path, keys, only=("watch-int",))


@asynchronous
async def test_a_table_of_no_codepack_is_told_and_audited(
    tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qvmi.audit")
    signed(tmp_path, keys, manifest=FAST)
    rules = "version = 1\n" + "".join(
        f"[codepacks.{name}]\nread-memory = true\n"
        for name in ("watch-init", "hidden-processes", "gateway", "watch-int")
    )
    _, output = await watched(tmp_path, keys, policy=rules)
    told = (
        "policy.toml: [codepacks.watch-int] is of no codepack that is here; is 'watch-init' meant?"
    )
    assert output.messages.count("[codepacks.") == 1
    assert told in " ".join(output.messages.split())
    (record,) = (one for one in caplog.records if "[codepacks." in one.getMessage())
    assert record.name == "qvmi.audit"


@pytest.mark.parametrize(
    "words",
    [
        ("pack", "info", "/no/such"),
        ("pack", "verify", "/no/such"),
        ("pack", "sign", "/no/such", "--key", "alice"),
        ("pack", "verify", ".", "--keys", "/no/such"),
        ("keys", "list", "--keys", "/no/such"),
        ("vol", "-p", "/no/such", "linux.pslist"),
    ],
)
def test_a_path_that_is_not_there_is_named_and_leads_to_2(words: tuple[str, ...]) -> None:
    done = qvmi(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "/no/such" in done.stderr


@pytest.mark.parametrize("option", ["load", "policy", "keys"])
@asynchronous
async def test_a_path_to_watch_with_that_is_not_there_is_a_usage_error(option: str) -> None:
    named: dict[str, Any] = {option: ["/no/such"] if option == "load" else "/no/such"}
    machine = FakeMachine(FakeGuest(processes=[INIT]))
    with pytest.raises(UsageError, match="/no/such"):
        await watch(machine, Captured(), packs="all", interval=1.0, duration_s=1.0, **named)


def test_what_others_may_change_is_not_signed(tmp_path: Path, keys: Path) -> None:
    folder = signed(tmp_path, keys)
    before = (folder / "codepack.sig").read_bytes()
    (folder / "rules.py").chmod(0o664)
    done = qvmi("pack", "sign", str(folder), "--key", "alice", "--keys", str(keys))
    assert done.returncode == 2
    assert f"chmod go-w {folder}/rules.py" in done.stderr
    assert (folder / "codepack.sig").read_bytes() == before


@asynchronous
async def test_a_codepack_for_another_guest_is_refused(tmp_path: Path, keys: Path) -> None:
    manifest = MANIFEST.replace("[baseline]", '[requires]\nos = ["windows"]\n\n[baseline]')
    signed(tmp_path, keys, manifest=manifest)
    with pytest.raises(CodepackRefused, match="made for windows"):
        await watched(tmp_path, keys)
