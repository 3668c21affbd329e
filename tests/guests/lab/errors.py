"""The one error of the guest lab: what went wrong, and what the reader can do about it."""

__all__ = ["LabError", "MissingPartError"]


class LabError(Exception):
    """This says what could not be done and, where there is a way, how to mend it."""

    def __init__(self, problem: str, *, fix: str = "") -> None:
        """Keep both halves, so that a test can name the one it means."""
        super().__init__(f"{problem}\nTo mend it: {fix}" if fix else problem)
        self.problem = problem
        self.fix = fix


class MissingPartError(LabError):
    """This says that the host lacks a program: a reason to skip a test, where any other is a failure."""
