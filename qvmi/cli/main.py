"""The ``qvmi`` command's entry point, which imports next to nothing."""

import sys

from qvmi import __version__

__all__ = ["main"]


def main() -> int:
    """This runs the ``qvmi`` command on the process's arguments.

    Returns:
        The exit code, one of :class:`qvmi.cli.exit_code.ExitCode`.
    """
    arguments = sys.argv[1:]
    # Scripts ask this to see whether there is a qvmi; even argparse would double what it costs.
    if arguments == ["--version"] and _said(f"qvmi {__version__}"):
        return 0
    from qvmi.cli.door import enter

    return enter(arguments)


def _said(line: str) -> bool:
    """This prints a line, and tells whether that was possible."""
    try:
        print(line, flush=True)
    except OSError:
        return False
    return True
