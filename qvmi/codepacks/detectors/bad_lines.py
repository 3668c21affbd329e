"""What a line of a script says that no system's own does: load something and run it, or give a shell away.

Whoever writes such a file may write it for us: each look at one takes time by its length, and no more. So no
pattern here tries again from each of its places what lies behind it.

References: MITRE ATT&CK T1059.004 Unix Shell, T1105 Ingress Tool Transfer, T1140 Deobfuscate/Decode Files.
"""

import re
from typing import Final

__all__ = ["bad_line"]

_CUT: Final = re.compile(rb"[\n|;&]")
"""Where a command of a line ends."""
_LOADS: Final = re.compile(rb"curl|wget")
_DECODES: Final = re.compile(rb"base64\s+(?:-d|--decode)")
_SHELL: Final = re.compile(rb"\s*(?:[a-z/]*/)?(?:ba|da|z|k)?sh\b")
"""Behind a bar."""
_CONNECTS: Final = re.compile(
    rb"/dev/(?:tcp|udp)/[0-9a-zA-Z.]+/[0-9]+|\bbash\s+-i\s*(?:[0-9]*>&|&>)"
)
_NETCAT: Final = re.compile(rb"\bnc(?:at)?\s")
_RUNS: Final = re.compile(rb"-[a-z]*e\s+/")


def bad_line(data: bytes) -> bytes | None:
    """This is the first such part of a line that was found; None where there is none."""
    connects = _CONNECTS.search(data)
    return connects[0] if connects else _piped(data) or _given_away(data)


def _piped(data: bytes) -> bytes | None:
    """This is what loads or decodes something, and gives it to a shell."""
    begin, decodes = 0, -1
    for cut in _CUT.finditer(data):
        at, mark = cut.start(), cut[0]
        if decodes < 0 and (found := _DECODES.search(data, begin, at)):
            decodes = found.start()
        if mark == b"|" and (shell := _SHELL.match(data, cut.end())):
            loads = _LOADS.search(data, begin, at)
            start = loads.start() if loads else decodes
            if start >= 0:
                return data[start : shell.end()]
        decodes = -1 if mark == b"\n" else decodes
        begin = cut.end()
    return None


def _given_away(data: bytes) -> bytes | None:
    """This is what lets whoever connects run a program."""
    for line in data.split(b"\n"):
        netcat = _NETCAT.search(line)
        runs = _RUNS.search(line, netcat.end()) if netcat else None
        if netcat and runs:
            return line[netcat.start() : runs.end()]
    return None
