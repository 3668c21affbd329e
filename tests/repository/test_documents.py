"""The documents name only what exists."""

import ast
import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

import qvmi
from qvmi.cli.declared.arguments import TextWanted, parse
from tests.repository.tree import ROOT, documents

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(r"(?:qvmi|tests|scripts|docs|examples|benchmarks|\.ci)/[\w./-]*")
QVMI_COMMAND = re.compile(r"qvmi (?:--\S+ \S+ )*([a-z-]+)")

HELP_S = 60


def blocks(language: str) -> Iterator[str]:
    for document in documents():
        for found, text in BLOCK.findall((ROOT / document).read_text()):
            if found == language:
                yield text


def inline_code() -> Iterator[tuple[str, str]]:
    for document in documents():
        for code in INLINE.findall((ROOT / document).read_text()):
            yield str(document), code


def shown_commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def shown_subcommands() -> list[str]:
    matches = [QVMI_COMMAND.match(command) for command in shown_commands()]
    return sorted({match[1] for match in matches if match})


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        (str(document), target)
        for document in documents()
        for target in LINK.findall((ROOT / document).read_text())
        if "://" not in target and not (ROOT / document.parent / target).exists()
    ]
    assert broken == []


def test_every_path_a_document_names_exists() -> None:
    named = [
        (document, path)
        for document, code in inline_code()
        for path in (code.split()[0],)
        if PATH.fullmatch(path)
    ]
    assert named
    assert [(document, path) for document, path in named if not (ROOT / path).exists()] == []


def test_every_script_shown_exists() -> None:
    scripts = [command.split()[0] for command in shown_commands() if command.startswith("scripts/")]
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("name", shown_subcommands())
def test_every_command_shown_is_a_command_of_qvmi(name: str) -> None:
    helped = subprocess.run(
        [
            sys.executable,
            "-c",
            "import qvmi.cli.main as m; raise SystemExit(m.main())",
            name,
            "--help",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HELP_S,
        check=False,
    )
    assert helped.returncode == 0, helped.stderr
    assert f"qvmi {name}" in helped.stdout


def shown_lines_of_qvmi() -> list[str]:
    """These are whole commands, but for one: it names plugins of the reader's own."""
    cut = [re.split(r"\s+(?:[|&>#]|2>)", line)[0] for line in shown_commands()]
    return sorted({line for line in cut if line.startswith("qvmi ") and "my.Plugin" not in line})


@pytest.mark.parametrize("line", shown_lines_of_qvmi())
def test_every_command_shown_is_understood_as_it_is_written(line: str) -> None:
    with contextlib.suppress(TextWanted):
        parse(shlex.split(line)[1:])


def test_every_python_block_uses_public_names() -> None:
    used = {
        node.attr
        for block in blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "qvmi"
    }
    assert used
    assert sorted(used - set(qvmi.__all__)) == []


def test_every_decision_is_listed_and_complete() -> None:
    folder = ROOT / "docs" / "adr"
    decisions = sorted(folder.glob("[0-9]*.md"))
    assert decisions
    listed = LINK.findall((folder / "README.md").read_text())
    assert [d.name for d in decisions if d.name not in listed] == []
    headings = ["## Context", "## Choice", "## Cost", "## When to revisit"]
    for decision in decisions:
        assert re.findall(r"^## .+$", decision.read_text(), re.MULTILINE) == headings, decision
