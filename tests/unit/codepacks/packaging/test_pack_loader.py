"""What runs are the bytes that were verified, whatever becomes of the folder."""

import shutil
import sys
import traceback
from pathlib import Path

import pytest

from qvmi.codepacks.codepack import Codepack, Finding, Severity
from qvmi.codepacks.packaging.pack_loader import load
from qvmi.errors import CodepackRefused, PolicyDenied
from qvmi.policy import READ_ONLY, Grant
from qvmi.testing import FakeGuest, FakeMemory, fake_process
from tests.unit.codepacks.signed_packs import CODE, MANIFEST, Workshop

EVIL = "raise SystemExit('this was not verified')\n"


def findings(pack: Codepack) -> list[tuple[str, Severity]]:
    guest = FakeGuest(processes=[fake_process(1, name="init"), fake_process(2, name="other")])
    found = pack.inspect(guest, FakeMemory({}))
    return [(one.claim, one.severity) for one in found if isinstance(one, Finding)]


def loaded(path: Path, **pack: str) -> Codepack:
    return load(Workshop.at(path, **pack).verify())


def test_a_verified_codepack_runs_with_its_baseline(tmp_path: Path) -> None:
    pack = loaded(tmp_path)
    assert (pack.name, pack.interval_s) == ("watch-init", 1.0)
    assert pack.grants == {Grant.READ_MEMORY}
    assert findings(pack) == [("init runs", Severity.LOW)]


def test_options_take_the_place_of_the_baseline(tmp_path: Path) -> None:
    pack = load(Workshop.at(tmp_path).verify(), pid=2, interval_s=0.5)
    assert (findings(pack), pack.interval_s) == ([("other runs", Severity.LOW)], 0.5)


def test_what_is_exchanged_after_the_check_is_not_what_runs(tmp_path: Path) -> None:
    workshop = Workshop.at(tmp_path)
    verified = workshop.verify()
    for name in ("detector.py", "rules.py", "lazy.py", "__init__.py"):
        (workshop.folder / name).write_text(EVIL)
    pack = load(verified)
    assert findings(pack) == [("init runs", Severity.LOW)]


def test_no_file_is_opened_after_the_check(tmp_path: Path) -> None:
    workshop = Workshop.at(tmp_path)
    verified = workshop.verify()
    shutil.rmtree(workshop.folder)
    assert findings(load(verified)) == [("init runs", Severity.LOW)]


def test_a_module_that_was_not_verified_is_not_found_even_where_the_folder_can_be_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop.at(tmp_path, code="from .extra import x\n" + CODE)
    verified = workshop.verify()
    (workshop.folder / "extra.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(workshop.folder))
    monkeypatch.chdir(workshop.folder)
    with pytest.raises(CodepackRefused, match="No module named"):
        load(verified)


def test_its_modules_stand_in_for_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    workshop = Workshop.at(tmp_path / "in")
    (workshop.folder / "json.py").write_text(EVIL)
    (workshop.folder / "qvmi").mkdir()
    (workshop.folder / "qvmi" / "policy.py").write_text(EVIL)
    workshop.sign()
    before = {name for name in sys.modules if not name.startswith("qvmi_codepack_")}
    load(workshop.verify())
    import json  # noqa: PLC0415 - the very thing that is tested

    assert json.loads("1") == 1
    after = {name for name in sys.modules if not name.startswith("qvmi_codepack_")}
    assert after == before


def test_two_versions_are_two_codes(tmp_path: Path) -> None:
    first = loaded(tmp_path / "first")
    workshop = Workshop.at(tmp_path / "second")
    (workshop.folder / "rules.py").write_text("def said(process):\n    return 'second'\n")
    workshop.sign()
    second = load(workshop.verify())
    assert findings(first) == [("init runs", Severity.LOW)]
    assert findings(second) == [("second", Severity.LOW)]


def test_a_traceback_shows_the_verified_source(tmp_path: Path) -> None:
    code = CODE.replace("from .lazy", "raise ValueError('shown')\n        from .lazy")
    pack = loaded(tmp_path, code=code)
    with pytest.raises(ValueError, match="shown") as caught:
        findings(pack)
    text = "".join(traceback.format_exception(caught.value))
    assert '"<codepack watch-init>/detector.py"' in text


WRONG_CODE = [
    ("", "has no attribute 'WatchInit'"),
    ("x = (", "SyntaxError"),
    ("import no_such_module_of_anybody", "No module named"),
    ("raise SystemExit(0)", "SystemExit"),
    ("1 / 0", "ZeroDivisionError"),
    ("WatchInit = 3", "not callable"),
    (CODE.replace("*, interval_s, pid", "*, interval_s"), "unexpected keyword argument 'pid'"),
    (
        CODE.replace('name = "watch-init"', 'name = "hidden-processes"'),
        "calls itself 'hidden-processes'",
    ),
    (
        CODE.replace("{Grant.READ_MEMORY}", "{Grant.READ_MEMORY, Grant.WRITE}"),
        "more than its manifest: write",
    ),
    (CODE.replace("{Grant.READ_MEMORY}", "{'all'}"), "'all' is not a valid Grant"),
    (CODE.replace("def inspect", "def look"), "inspect"),
    (CODE.replace("= interval_s", "= 0"), "makes no codepack"),
    ("\0", "null bytes"),
]


@pytest.mark.parametrize(("code", "reason"), WRONG_CODE)
def test_code_that_is_not_what_its_manifest_says_is_refused(
    tmp_path: Path, code: str, reason: str
) -> None:
    with pytest.raises(CodepackRefused) as caught:
        loaded(tmp_path, code=code)
    assert caught.value.codepack == "watch-init"
    assert reason in caught.value.problem


def test_a_codepack_that_asks_for_more_than_the_policy_gives_is_refused(tmp_path: Path) -> None:
    greedy = MANIFEST.replace('["read-memory"]', '["read-memory", "write", "pause"]')
    manifest = Workshop.at(tmp_path, manifest=greedy).verify().folder.manifest
    with pytest.raises(
        PolicyDenied, match=r"codepack watch-init: not granted \(needs grant 'pause'\)"
    ):
        manifest.require_granted(READ_ONLY)
    manifest.require_granted(READ_ONLY.plus(Grant.WRITE, Grant.PAUSE))
