"""Codepacks and keys at the command line: signed, verified, refused with the reason."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.watching import watch
from qvmi.errors import BadSettings, CodepackRefused, PolicyDenied
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
        (("keys", "revoke", "nobody"), "qvmi keys list"),
        (("pack", "buy"), "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_way_out(
    keys: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = qvmi(*arguments, "--keys", str(keys))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_what_comes_with_qvmi_tells_what_it_needs() -> None:
    listed, *_ = qvmi_document("pack", "list")["items"]
    assert qvmi_document("pack", "info", "hidden-processes") == listed
    assert (listed["name"], listed["grants"]) == ("hidden-processes", ["read-memory"])
    assert listed["management"]["restart"] == "on-failure"


def test_info_says_that_it_only_repeats_what_a_folder_says(tmp_path: Path) -> None:
    done = qvmi("pack", "info", str(pack_folder(tmp_path / "pack")))
    assert (done.returncode, done.stderr.count("qvmi pack verify")) == (0, 1)
    assert "watch-init" in done.stdout


async def watched(
    tmp_path: Path, keys: Path, *, policy: str | None = None
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


@asynchronous
async def test_a_codepack_for_another_guest_is_refused(tmp_path: Path, keys: Path) -> None:
    manifest = MANIFEST.replace("[baseline]", '[requires]\nos = ["windows"]\n\n[baseline]')
    signed(tmp_path, keys, manifest=manifest)
    with pytest.raises(CodepackRefused, match="made for windows"):
        await watched(tmp_path, keys)
