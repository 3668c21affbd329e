"""``QVMI_REQUIRE_ALL=1`` allows no skip."""

from pathlib import Path

import pytest

from tests.repository.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, "tests.require_all")


SKIPS = {
    "a mark": """
        import pytest

        @pytest.mark.skip(reason="no moon tonight")
        def test_moon(): ...
        """,
    "a call": """
        import pytest

        def test_moon():
            pytest.skip("no moon tonight")
        """,
    "a fixture": """
        import pytest

        @pytest.fixture
        def moon():
            pytest.skip("no moon tonight")

        def test_moon(moon): ...
        """,
    "a module": """
        import pytest

        pytest.skip("no moon tonight", allow_module_level=True)
        """,
}


@pytest.mark.parametrize("text", SKIPS.values(), ids=SKIPS.keys())
def test_turns_a_skip_into_a_failure_that_quotes_its_reason(project: Project, text: str) -> None:
    project.write("test_moon.py", text)
    outcome = project.run(QVMI_REQUIRE_ALL="1")
    assert outcome.code != 0
    assert "allows no skip" in outcome.output
    assert "no moon tonight" in outcome.output


@pytest.mark.parametrize("text", SKIPS.values(), ids=SKIPS.keys())
def test_leaves_a_skip_alone_on_a_users_host(project: Project, text: str) -> None:
    project.write("test_moon.py", text)
    project.write("test_sun.py", "def test_sun(): ...")
    outcome = project.run()
    assert outcome.code == 0
    assert "1 passed, 1 skipped" in outcome.output


def test_leaves_an_expected_failure_alone(project: Project) -> None:
    project.write(
        "test_moon.py",
        """
        import pytest

        @pytest.mark.xfail(strict=True)
        def test_moon():
            assert False
        """,
    )
    outcome = project.run(QVMI_REQUIRE_ALL="1")
    assert outcome.code == 0
    assert "1 xfailed" in outcome.output
