"""The root of the tree, and what is wrong with a question itself."""

__all__ = [
    "BadSettings",
    "QvmiError",
    "UsageError",
]


class QvmiError(Exception):
    """This is the base of every error that qvmi raises on purpose."""


class UsageError(QvmiError):
    """This argument cannot be right; the message names the value and the way out."""


class BadSettings(UsageError):
    """This file of settings, a policy or a manifest, says something that cannot be right.

    Attributes:
        path: of the file.
        line: where in it; None where that is not known.
        key: which key; empty where it is the file itself.
        problem: what is wrong, and the way out.
    """

    def __init__(
        self, path: object, problem: str, *, line: int | None = None, key: str = ""
    ) -> None:
        place = "" if line is None else f", line {line}"
        super().__init__(f"{path}{place}: {f'{key} ' if key else ''}{problem}")
        self.path = path
        self.line = line
        self.key = key
        self.problem = problem
