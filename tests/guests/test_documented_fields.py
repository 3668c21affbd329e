"""What docs/cli.md says that JSON has is what the commands print of a real guest, and all of it."""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from qvmi.audit import LOGGER, AuditLog
from tests.command_line import qvmi_document
from tests.guests.exotic_guests import exotic_guest
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.repository.tree import ROOT

ROW: Final = re.compile(r"^\| `([a-z -]+)` \| (.*) \|$", re.MULTILINE)
FIELD: Final = re.compile(r"`([a-z_0-9]+)`")
LISTINGS: Final = {
    **{
        name: (name,) for name in ("ps", "tree", "threads", "modules", "mounts", "files", "sockets")
    },
    **{name: (name,) for name in ("maps", "cmdline", "log", "creds", "namespaces", "cgroups")},
    **{name: (name,) for name in ("bpf", "cached", "find")},
    "env": ("env", "1"),
    "stack": ("stack", "2"),
    "percpu": ("percpu", "cpu_number"),
    "scan": ("scan", "--string", "Linux version 6.1"),
}
DOCUMENTS: Final = {
    "read": ("read", "linux_banner"),
    "translate": ("translate", "linux_banner"),
    "symbol": ("symbol", "linux_banner"),
    "type": ("type", "list_head"),
    "isf": ("isf", "-o", "FOLDER/symbols.json.xz"),
    "dump": ("dump", "FOLDER/guest.core"),
    "dump --pid": ("dump", "--pid", "1", "FOLDER/init.core"),
    "recover": ("recover", "/bin/busybox", "-o", "FOLDER/busybox"),
    "audit": ("audit", "verify", "FOLDER/audit.log"),
}
ELSEWHERE: Final = {
    *("info", "regs", "vol", "pack", "pack run", "keys", "doctor", "gdb"),
    *("disk list", "disk ls", "disk compare", "flows", "respond"),
}
"""Commands whose fields depend on what they look at; their own tests name them."""
ONLY_OF_SOME: Final = {
    "translate": {"problem"},
    "audit": {"line", "problem"},
    "scan": {"pid"},
    "tree": {"ps"},
    "find": {"provenance"},
    "recover": {"reason", "start", "end", "cached"},
    "type": {"constants", "holes", "bit_offset", "bit_size"},
}
"""Fields of what is not met here or within a list that is empty, and words that are no fields."""


def documented() -> dict[str, set[str]]:
    """These are the words in code in the rows of the tables about JSON, by command."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    tables = text[text.index("### JSON") :]
    found = {name: set(FIELD.findall(told)) for name, told in ROW.findall(tables)}
    found["tree"] |= found["ps"]
    found["dump --pid"] |= found["dump"]
    return found


DOCUMENTED: Final = documented()


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield exotic_guest(lab, stack, GuestConfig(kernel="6.1"))  # which has eBPF programs


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def names_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """These are the names of all members, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


def check(command: str, objects: list[dict[str, Any]]) -> None:
    """This compares what is printed with what is documented: all that is there is told, and no more."""
    assert objects, "there is none to compare with"
    told = DOCUMENTED[command]
    assert {name for one in objects for name in one} - told == set()
    assert told - set(names_in(objects)) <= ONLY_OF_SOME.get(command, set())


def test_every_command_with_json_of_its_own_is_told_of_and_compared_here() -> None:
    assert set(DOCUMENTED) == {*LISTINGS, *DOCUMENTS, *ELSEWHERE} - {"gdb"}


@pytest.mark.parametrize("command", LISTINGS)
def test_the_fields_of_a_listing_are_those_documented(guest: Guest, command: str) -> None:
    document = qvmi_document("--qmp", guest.qmp, *LISTINGS[command])
    assert set(document) == {"items", "gaps", "provenance"}
    check(command, document["items"])


@pytest.mark.parametrize("command", DOCUMENTS)
def test_the_fields_of_a_document_are_those_documented(
    guest: Guest, command: str, tmp_path: Path
) -> None:
    with AuditLog(tmp_path / "audit.log"):
        logging.getLogger(LOGGER).info("a record")
    typed = [word.replace("FOLDER", str(tmp_path)) for word in DOCUMENTS[command]]
    check(command, [qvmi_document("--qmp", guest.qmp, *typed)])
