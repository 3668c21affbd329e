"""What a hostile guest calls its processes, and how each is to be shown."""

from typing import Final

__all__ = ["ALIGNED", "HARMLESS", "NASTY"]

NASTY: Final = {
    # What a terminal would obey.
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b[2J\x1b[H": "\\x1b[2J\\x1b[H",
    "a\rb": "a\\x0db",
    "a\nb\tc": "a\\x0ab\\x09c",
    "bell\x07\x00del\x7f": "bell\\x07\\x00del\\x7f",
    # The same as single C1 controls.
    "\x9b31mred": "\\x9b31mred",
    "\x85next": "\\x85next",
    # What turns, splits or hides text.
    "gpj.\u202eexe": "gpj.\\u202eexe",
    "\u2066x\u2069": "\\u2066x\\u2069",
    "a\u2028b\u2029c": "a\\u2028b\\u2029c",
    "zero\u200bwidth\u200d": "zero\\u200bwidth\\u200d",
    "soft\u00adhyphen": "soft\\xadhyphen",
    "\ufeffbom": "\\ufeffbom",
    "tag\U000e0041": "tag\\U000e0041",
    # What looks like nothing, or like a space.
    "no\u00a0break": "no\\xa0break",
    "wide\u3000space": "wide\\u3000space",
    "\u3164\u115f\u1160\uffa0": "\\u3164\\u115f\\u1160\\uffa0",
    "\u2800": "\\u2800",
    "sshd\ufe0f": "sshd\\ufe0f",
    "ss\u034fhd": "ss\\u034fhd",
    # Marks without a letter, and more of them than any script needs.
    "\u0301lone": "\\u0301lone",
    "1\u0301": "1\\u0301",
    "z\u0301\u0302\u0303\u0304": "z\u0301\u0302\\u0303\\u0304",
    # What has no meaning, or one that others gave it.
    "\ue000\U000f0000": "\\ue000\\U000f0000",
    "\u0378": "\\u0378",
    "lone\udcff": "lone\\udcff",
}
"""Text, with how it is shown."""

HARMLESS: Final = (
    "",
    "systemd",
    "a name with spaces",
    "(sd-pam)",
    "[bold red]x[/]",
    "<script>alert(1)</script>",
    "\\xff\\xfe",
    "naïve",
    "демон",
    "プロセス",
    "进程",
    "データ①",
    "ไทยที่",
    "ви\u0306",
    "🦊",
)
"""Text that is shown as it is."""

ALIGNED: Final = (*NASTY, *HARMLESS)
"""All of it: tables keep their columns with any of these."""
