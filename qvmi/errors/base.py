"""The root of the tree, and what is wrong with a question itself."""

__all__ = [
    "QvmiError",
    "UsageError",
]


class QvmiError(Exception):
    """This is the base of every error that qvmi raises on purpose."""


class UsageError(QvmiError):
    """This argument cannot be right; the message names the value and the way out."""
