"""The process that scans: YARA-X holds Python's lock while it scans, and cannot be ended in mid-scan.

Run as ``python -P scanner_process.py``; it is told on stdin what to scan, and answers on stdout. Both ways
go frames: four bytes of length, then JSON. It ends with its stdin. See
:mod:`qvmi.machine.scanning.scanner`, which starts it.

References: YARA-X ``py/yara_x.pyi`` (``Compiler``, ``Scanner``), 1.x.
"""

import json
import os
import struct
import sys
from typing import Any, BinaryIO, Final

import yara_x

LENGTH: Final = struct.Struct("<I")
NO_FILE: Final = -1
"""In place of a descriptor: the piece is a hole, which reads as zeros."""

SHOWN: Final = 32
"""Bytes of a hit that are told, unless more are asked for."""
MOST_META: Final = 16
"""What an author says of a rule, of each: more is of no use to anybody."""
MOST_TEXT: Final = 256
"""Letters of each."""

_NO_PATTERN: Final = "no rule has a pattern, so that there is nothing to search for"


def main() -> None:
    """This compiles the rules it is given, then scans what it is told to until there is no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    order = received(requests)
    if order is None:
        return
    rules, answer = loaded(order["compiled"]) if "compiled" in order else compiled(order["sources"])
    if rules is not None and "save" in order:
        with os.fdopen(order["save"], "wb", closefd=False) as file:
            rules.serialize_into(file)
    if rules is not None and order.get("describe"):
        answer["rules"] = [described(rule) for rule in rules]
    send(answers, answer)
    if rules is None:
        return
    scanner = WindowScanner(rules, order["hits_per_rule"], order["longest"])
    if "told_per_window" in order:
        scanner.tell_of_each_window(order["told_per_window"], order["shown"])
    scanner.set_timeout(order["window_timeout_s"])
    while (request := received(requests)) is not None:
        send(answers, [scanner.scan(window) for window in request])


def compiled(sources: list[dict[str, str]]) -> tuple[yara_x.Rules | None, dict[str, Any]]:
    """This compiles rules, and tells what their compiler has to say of them."""
    compiler = yara_x.Compiler()
    try:
        for source in sources:
            if source["folder"]:
                compiler.add_include_dir(source["folder"])
            compiler.add_source(source["text"], source["origin"])
        rules = compiler.build()
    except (yara_x.CompileError, ValueError) as error:
        texts = [problem["text"] for problem in compiler.errors()] or [str(error)]
        return None, {"errors": texts}
    names = [rule.identifier for rule in rules]
    placeless = [rule.identifier for rule in rules if not rule.patterns]
    warnings = [warning["text"] for warning in compiler.warnings()]
    if len(placeless) == len(names):
        return None, {"errors": [_NO_PATTERN]}
    return rules, {"errors": [], "warnings": warnings, "placeless": placeless}


def loaded(descriptor: int) -> tuple[yara_x.Rules | None, dict[str, Any]]:
    """This takes rules that this very program has compiled before, and their host vouches for."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123 - a descriptor
            return yara_x.Rules.deserialize_from(file), {"errors": []}
    except (OSError, ValueError, yara_x.CompileError) as error:
        return None, {"errors": [f"what was compiled cannot be used: {error}"]}


def described(rule: yara_x.Rule) -> dict[str, Any]:
    """This is what a rule says of itself."""
    meta = [[key, worded(value)] for key, value in rule.metadata[:MOST_META]]
    return {"name": rule.identifier, "tags": list(rule.tags[:MOST_META]), "meta": meta}


def worded(value: object) -> object:
    """This is a value that an author gave, in a form that JSON has."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return value[:MOST_TEXT] if isinstance(value, str) else value


class WindowScanner:
    """This scans one window after another.

    Args:
        rules: to scan with.
        hits_per_rule: so many hits of a rule are told.
        longest: bytes that a match is told to have at most.
    """

    def __init__(self, rules: yara_x.Rules, hits_per_rule: int, longest: int) -> None:
        self._scanner = yara_x.Scanner(rules)
        self._longest = longest
        self._most = hits_per_rule + 1  # one more, so that it is known whether there are more
        self._scanner.max_matches_per_pattern(self._most)
        self._left: dict[str, int] = {}
        self._hits_per_rule = hits_per_rule
        self._told: int | None = None
        self._shown = SHOWN
        self.set_timeout = self._scanner.set_timeout

    def tell_of_each_window(self, told: int, shown: int) -> None:
        """This has each window stand for itself: so many hits of a rule are told, however many there were."""
        self._told, self._shown = told, shown

    def scan(self, window: dict[str, Any]) -> dict[str, Any]:
        """This scans a window, of which the first bytes and the last are there for their neighbours."""
        try:
            data = b"".join(piece(*one) for one in window["pieces"])
        except (OSError, EOFError) as error:
            return {"problem": f"it cannot be read: {error}", "hits": [], "cut": []}
        try:
            found = self._scanner.scan(data)
        except yara_x.TimeoutError:
            return {"problem": "the rules took too long there", "hits": [], "cut": []}
        except yara_x.ScanError as error:
            return {"problem": str(error), "hits": [], "cut": []}
        hits, cut = self._hits(found, data, window["skip"], window["own"])
        return {"problem": "", "hits": sorted(hits), "cut": cut}

    def _hits(
        self, found: yara_x.ScanResults, data: bytes, skip: int, own: int
    ) -> tuple[list[tuple[int, str, str, int, str]], list[str]]:
        hits: list[tuple[int, str, str, int, str]] = []
        cut: list[str] = []
        if self._told is not None:
            self._left.clear()
        for rule in found.matching_rules:
            name = rule.identifier
            left = self._left.setdefault(name, self._hits_per_rule)
            fresh, more = self._of_rule(rule, skip, own)
            if left >= 0 and (more or len(fresh) > left):
                cut.append(name)
            hits += [
                (at - skip, name, pattern, length, data[at : at + min(length, self._shown)].hex())
                for at, pattern, length in fresh[: max(left, 0)][: self._told]
            ]
            self._left[name] = -1 if name in cut else left - len(fresh)
        return hits, cut

    def _of_rule(
        self, rule: yara_x.Rule, skip: int, own: int
    ) -> tuple[list[tuple[int, str, int]], bool]:
        """These are the hits that begin in the window's own part, and whether there may be more."""
        fresh: list[tuple[int, str, int]] = []
        more = False
        for pattern in rule.patterns:
            matches = pattern.matches
            more |= len(matches) >= self._most
            fresh += [
                (match.offset, pattern.identifier, min(match.length, self._longest))
                for match in matches
                if skip <= match.offset < skip + own
            ]
        return sorted(fresh), more


def piece(descriptor: int, offset: int, size: int) -> bytes:
    """This reads one piece without mapping it, so that a hole of the file stays one."""
    if descriptor == NO_FILE:
        return bytes(size)
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError("the file was cut off there")
        data += more
    return data


def received(stream: BinaryIO) -> Any:  # noqa: ANN401 - JSON
    """This is the next message; None when there will be none."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return json.loads(stream.read(LENGTH.unpack(head)[0]))


def send(stream: BinaryIO, message: object) -> None:
    """This sends a message."""
    body = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


if __name__ == "__main__":
    main()
