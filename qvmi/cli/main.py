"""The ``qvmi`` command's entry point, which imports next to nothing."""

import sys

from qvmi import __version__

__all__ = ["main"]

_INTERRUPTED = 130
"""This is ``ExitCode.INTERRUPTED``, written out: importing it, or `Final`, takes time."""


def main() -> int:
    """This runs the ``qvmi`` command on the process's arguments.

    Returns:
        The exit code, one of :class:`qvmi.cli.exit_code.ExitCode`.
    """
    arguments = sys.argv[1:]
    # Scripts ask this to see whether there is a qvmi; even argparse would double what it costs.
    if arguments == ["--version"] and _said(f"qvmi {__version__}"):
        return 0
    try:
        from qvmi.cli.door import enter

        code: int = enter(arguments)
        _leave_ctrl_c_to_the_kernel()
    except KeyboardInterrupt:  # before or behind the door, which answers for all that lies between
        return _INTERRUPTED
    return code


def _leave_ctrl_c_to_the_kernel() -> None:
    """This lets Ctrl-C end a process that is done; in its last steps Python would complain."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _said(line: str) -> bool:
    """This prints a line, and tells whether that was possible."""
    if sys.stdout is None:  # it was closed; `print` would say nothing about it
        return False
    try:
        print(line, flush=True)
    except OSError:
        return False
    return True
