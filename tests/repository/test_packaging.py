"""The package works when it is installed alone, as a user would."""

import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

import qvmi
from tests.repository.tree import ROOT, copy_of_the_tree

# The runtime dependencies are downloaded; a minute on a slow line.
INSTALL_S = 600

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(INSTALL_S)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is a fresh environment with qvmi and what it depends on, nothing else."""
    folder = tmp_path_factory.mktemp("packaging")
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    clone = copy_of_the_tree(folder / "clone")
    subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "install", "--quiet", clone],
        timeout=INSTALL_S,
        check=True,
    )
    return environment


def said(*command: str | Path) -> str:
    return subprocess.run(
        command, cwd="/", capture_output=True, text=True, timeout=INSTALL_S, check=True
    ).stdout


def test_installed_alone_the_command_works(installed: Path) -> None:
    assert said(installed / "bin" / "qvmi", "--version") == f"qvmi {qvmi.__version__}\n"


def test_without_volatility_the_command_names_the_extra(installed: Path) -> None:
    refused = subprocess.run(
        [installed / "bin" / "qvmi", "vol", "linux.pslist"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        "qvmi: Volatility 3 is not installed: pip install 'qvmi[volatility]'\n"
    )


def test_the_wheel_carries_the_package_with_its_type_marker_and_nothing_else(
    installed: Path,
) -> None:
    script = "import importlib.metadata as m; print(*m.files('qvmi'), sep='\\n')"
    files = said(installed / "bin" / "python", "-c", script).splitlines()
    assert "qvmi/py.typed" in files
    dist_info = f"qvmi-{qvmi.__version__}.dist-info"
    assert {file.split("/")[0] for file in files} == {"..", "qvmi", dist_info}


def test_the_version_is_said_once(installed: Path) -> None:
    script = "import importlib.metadata as m; print(m.version('qvmi'))"
    assert said(installed / "bin" / "python", "-c", script).strip() == qvmi.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
