"""Which archive mirrors this machine's own apt is set up with, from both forms of its source files.

References: sources.list(5), "ONE-LINE-STYLE FORMAT" and "DEB822-STYLE FORMAT".
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["AptSource", "machine_sources", "parse_deb822", "parse_one_line"]

APT_FOLDER = Path("/etc/apt")
EXTRA_SOURCES = "QVMI_GUEST_SOURCES"
"""Names a sources file looked at before the machine's own: for a suite its mirror no longer serves."""

ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)"
)
REMOTE_SCHEMES = ("http://", "https://", "file:/", "copy:/", "mirror+", "tor+")


@dataclass(frozen=True, slots=True)
class AptSource:
    """This is one archive and one suite of it, as a source file names them.

    Attributes:
        keyring_name: the file name of the keyring it is bound to; empty where none is named.
        chosen: somebody named it for the guests, rather than for the machine.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring_name: str = ""
    chosen: bool = False

    @property
    def serves_main(self) -> bool:
        """Tell whether it is a network or disk mirror with the part that kernels are in."""
        return "main" in self.components and self.uri.startswith(REMOTE_SCHEMES)


def parse_one_line(text: str) -> Iterator[AptSource]:
    """Read the lines of a ``*.list`` file that name binary packages."""
    for line in text.splitlines():
        match = ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            signed = re.search(r"signed-by=(\S+)", match["options"] or "")
            keyring = Path(signed[1]).name if signed else ""
            components = tuple(match["components"].split())
            yield AptSource(match["uri"], match["suite"], components, keyring)


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Read the stanzas of a ``*.sources`` file that name binary packages and are enabled."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _deb822_fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {
            "no",
            "false",
        }:
            continue
        components = tuple(fields.get("components", "").split())
        keyring = Path(fields.get("signed-by", "")).name
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(uri, suite, components, keyring)


def _deb822_fields(stanza: str) -> dict[str, str]:
    """Return a stanza's fields by lower-case name, continuation lines joined, comments dropped."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in {" ", "\t"}:
            fields[name] = f"{fields.get(name, '')} {line.strip()}"
        else:
            key, _, value = line.partition(":")
            name = key.strip().lower()
            fields[name] = value.strip()
    return fields


def machine_sources(apt_folder: Path = APT_FOLDER) -> tuple[AptSource, ...]:
    """Return every archive the machine takes binary packages from, in the order apt reads them.

    Those of the file that QVMI_GUEST_SOURCES names come first.
    """
    parts = (apt_folder / "sources.list.d").glob("*")
    named = sorted(path for path in parts if path.suffix in {".list", ".sources"})
    found = [*_chosen_sources(), *_read(apt_folder / "sources.list")]
    found += [source for path in named for source in _read(path)]
    return tuple(source for source in found if source.serves_main)


def _chosen_sources() -> Iterator[AptSource]:
    extra = os.environ.get(EXTRA_SOURCES)
    for source in _read(Path(extra)) if extra else ():
        yield replace(source, chosen=True)


def _read(path: Path) -> Iterable[AptSource]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ()
    return parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
