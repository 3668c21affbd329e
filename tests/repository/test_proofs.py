"""A whole-suite run fails when a requirement was not proven."""

import re
from pathlib import Path

import msgspec
import pytest

from tests.proofs import PROOFS_FILE, load_requirements, proof_size
from tests.repository.project import Project
from tests.repository.tree import ROOT

PROOFS = """
    [[requirement]]
    text = "the moon is full in every year"
    proofs = [{ test = "test_moon.py::test_full", cases = 2, count = 24, count_full = 1200 }]
    """

MOON = """
    import pytest

    @pytest.mark.parametrize("year", [2025, 2026])
    def test_full(year, proof_count):
        proof_count(7)
        proof_count(5)
    """


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path, "tests.proofs")
    project.write("docs/proofs.toml", PROOFS)
    project.write("test_moon.py", MOON)
    return project


def test_passes_when_every_case_passed_and_counted_enough(project: Project) -> None:
    outcome = project.run("--proofs")
    assert outcome.code == 0
    # The two cases and the item that compares.
    assert "3 passed" in outcome.output


def test_names_the_requirement_and_the_test_that_was_not_collected(project: Project) -> None:
    project.write("test_moon.py", MOON.replace("test_full", "test_half"))
    outcome = project.run("--proofs")
    assert outcome.code == 1
    assert "the moon is full in every year" in outcome.output
    assert "test_moon.py::test_full: 0 cases collected, 2 needed" in outcome.output


def test_fails_when_a_case_is_missing(project: Project) -> None:
    project.write("test_moon.py", MOON.replace("2025, 2026", "2026"))
    outcome = project.run("--proofs")
    assert outcome.code == 1
    assert "1 cases collected, 2 needed" in outcome.output


def test_fails_when_a_case_was_deselected(project: Project) -> None:
    outcome = project.run("--proofs", "-k", "2026")
    assert outcome.code == 1
    assert "1 cases collected, 2 needed" in outcome.output


def test_fails_when_too_few_were_counted(project: Project) -> None:
    project.write("test_moon.py", MOON.replace("proof_count(5)", "proof_count(4)"))
    outcome = project.run("--proofs")
    assert outcome.code == 1
    assert "22 counted, 24 needed" in outcome.output


def test_asks_for_the_full_count_at_full_size(project: Project) -> None:
    outcome = project.run("--proofs", QVMI_PROOF_SIZE="full")
    assert outcome.code == 1
    assert "24 counted, 1200 needed" in outcome.output


@pytest.mark.parametrize(
    ("line", "ending"),
    [("pytest.skip()", "skipped"), ("pytest.xfail()", "skipped"), ("assert False", "failed")],
)
def test_takes_no_case_for_proof_that_did_not_pass(
    project: Project, line: str, ending: str
) -> None:
    project.write("test_moon.py", MOON.replace("proof_count(7)", f"proof_count(24); {line}"))
    outcome = project.run("--proofs")
    assert outcome.code == 1
    assert f"test_full[2025] {ending}" in outcome.output


def test_takes_no_case_for_proof_whose_teardown_failed(project: Project) -> None:
    project.write(
        "conftest.py",
        """
        import pytest

        @pytest.fixture(autouse=True)
        def tidy():
            yield
            raise OSError("cannot tidy")
        """,
    )
    outcome = project.run("--proofs")
    assert outcome.code == 1
    assert "test_full[2025] failed" in outcome.output


def test_asks_nothing_of_a_run_without_the_option(project: Project) -> None:
    outcome = project.run("-k", "2026")
    assert outcome.code == 0
    assert "1 passed" in outcome.output


def test_refuses_a_requirement_that_no_test_proves(tmp_path: Path) -> None:
    path = tmp_path / "proofs.toml"
    path.write_text('[[requirement]]\ntext = "the moon is green"\nproofs = []\n')
    with pytest.raises(ValueError, match="the moon is green"):
        load_requirements(path)


def test_refuses_a_misspelt_key(tmp_path: Path) -> None:
    path = tmp_path / "proofs.toml"
    path.write_text('[[requirement]]\ntext = "a"\nproofs = [{ test = "b", counts = 5 }]\n')
    with pytest.raises(msgspec.ValidationError, match="counts"):
        load_requirements(path)


@pytest.mark.parametrize(("size", "expected"), [("full", 1000), ("ci", 50), (None, 50)])
def test_a_proof_has_one_size_parameter(
    monkeypatch: pytest.MonkeyPatch, size: str | None, expected: int
) -> None:
    monkeypatch.delenv("QVMI_PROOF_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("QVMI_PROOF_SIZE", size)
    assert proof_size(ci=50, full=1000) == expected


def test_every_benchmark_named_by_a_requirement_exists() -> None:
    named = {r.benchmark for r in load_requirements(ROOT / PROOFS_FILE) if r.benchmark}
    assert sorted(b for b in named if not (ROOT / b).is_file()) == []


def test_every_test_named_by_a_requirement_is_in_its_file() -> None:
    named = {p.test for r in load_requirements(ROOT / PROOFS_FILE) for p in r.proofs}
    assert named
    assert sorted(one for one in named if not _is_there(one)) == []


def _is_there(test: str) -> bool:
    """This is a matter of the text alone: a module may have the tests of another one."""
    path, _, name = test.partition("[")[0].partition("::")
    file = ROOT / path
    return (
        file.is_file()
        and re.search(rf"\b{name.rpartition('::')[2]}\b", file.read_text()) is not None
    )


def test_no_requirement_is_listed_twice() -> None:
    texts = [r.text for r in load_requirements(ROOT / PROOFS_FILE)]
    assert sorted(t for t in texts if texts.count(t) > 1) == []
