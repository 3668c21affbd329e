"""What it costs to ask whether there is a qvmi: the CPU time of ``qvmi --version`` and of the interpreter.

``python benchmarks/start_time.py [--quick]``
"""

import os
import subprocess
import sys

from race import Disagreement, Side, Size, in_turns, process_environment, run, tell

import qvmi

LIMIT_S = 0.060
COMMAND = "import sys; from qvmi.cli.main import main; sys.exit(main())"
"""What the console script ``qvmi`` does."""


def cpu_time(*arguments: str) -> Side:
    """This takes the CPU seconds, of user and kernel, that an interpreter uses for something."""

    def side() -> float:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=process_environment(), stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Disagreement(f"{arguments} ended with {process.returncode}")
        return usage.ru_utime + usage.ru_stime

    return side


def main(size: Size) -> None:
    """This runs both in turns."""
    told = subprocess.run(
        [sys.executable, "-c", COMMAND, "--version"], capture_output=True, text=True, check=True
    )
    if told.stdout != f"qvmi {qvmi.__version__}\n":
        raise Disagreement(f"the command says {told.stdout!r}, the package {qvmi.__version__!r}")
    print("the version: both sides gave the same answer, 1 of them")
    sides = cpu_time("-c", COMMAND, "--version"), cpu_time("-c", "pass")
    ours, bare = in_turns(size.of(full=50, quick=1), *sides)
    tell(
        "CPU time of qvmi --version",
        ours,
        limit_s=LIMIT_S,
        peer="Python that does nothing",
        theirs=bare,
    )


if __name__ == "__main__":
    run(main)
