"""The program that ends with its parent."""

import os
import subprocess
import sys
from pathlib import Path

from qvmi.bus import lifeline
from tests.unit.bus.processes import ended

LIFELINE = Path(lifeline.__file__)

PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-I", "-S", {str(LIFELINE)!r}, str(os.getpid()), "/bin/cat"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"alive\\n"); child.stdin.flush()
assert child.stdout.readline() == b"alive\\n"
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_the_program_is_killed_when_its_parent_is() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not ended(pid, within_s=0.0)
    parent.kill()
    parent.communicate()
    assert ended(pid)


def test_the_program_does_not_start_when_its_parent_has_ended_already() -> None:
    nobody = 2**22 + 1
    done = subprocess.run(
        [sys.executable, "-I", "-S", LIFELINE, str(nobody), "/bin/echo", "started"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "the parent ended" in done.stderr


def test_arguments_and_result_are_those_of_the_program() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", LIFELINE, str(os.getpid())),
            *("/bin/sh", "-c", "echo $1; exit 7", "sh", "a b"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "a b\n")
