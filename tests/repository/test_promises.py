"""Small promises of the repository that a text search can hold it to."""

import re
import subprocess
import sys
from urllib.parse import urlsplit

import qvmi
from tests.repository.tree import ROOT, tracked_files

LOOKUP_S = 60
# A few words, or the rule whose reason it shares.
REASON = re.compile(r"# (as [A-Z]+[0-9]+|.{20,})")


def lines_of_ignored_rules() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    ruff = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.pydocstyle]")]
    return [line for line in ruff.splitlines() if re.match(r'\s+"[A-Z]+[0-9]+",', line)]


def test_each_ignored_rule_has_its_reason() -> None:
    lines = lines_of_ignored_rules()
    assert lines
    assert [line for line in lines if not REASON.search(line)] == []


def test_the_changelog_has_an_entry_for_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert qvmi.__version__ in headings


def said(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LOOKUP_S, check=True
    ).stdout


def package_servers() -> set[str]:
    """These are the servers that this machine's own apt and pip fetch from."""
    sites = said("apt-get", "indextargets", "--format", "$(SITE)").split()
    default_index = "from pip._internal.models.index import PyPI; print(PyPI.url)"
    settings = said(sys.executable, "-m", "pip", "config", "list")
    urls = [
        *sites,
        said(sys.executable, "-c", default_index).strip(),
        *re.findall(r"https?://[^\s']+", settings),
    ]
    return {host for url in urls if (host := urlsplit(url).hostname)}


def test_no_file_names_a_package_server() -> None:
    servers = package_servers()
    assert servers
    named = [
        (str(file), server)
        for file in tracked_files()
        for server in servers
        if server.encode() in (ROOT / file).read_bytes()
    ]
    assert named == []
