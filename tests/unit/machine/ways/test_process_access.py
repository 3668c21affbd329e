"""What helps those who may not read QEMU's process is told by who they are and what the kernel allows."""

import os

import pytest

from qvmi.machine.ways.process_access import how_to_read, way_out


@pytest.mark.parametrize(
    ("uid", "owner", "scope", "words"),
    [
        (1000, 64055, 0, "belongs to uid 64055: run qvmi as that user, or as root"),
        (1000, 0, 1, "belongs to uid 0: run qvmi as that user, or as root"),
        (
            1000,
            1000,
            1,
            "kernel.yama.ptrace_scope is 1: set it to 0 with sysctl, or run qvmi as root",
        ),
        (1000, 1000, 2, "kernel.yama.ptrace_scope is 2: run qvmi as root"),
        (1000, 1000, 0, "run qvmi as the user QEMU runs as, or as root"),
        (1000, None, 0, "run qvmi outside of this container"),
        (0, 64055, 1, "CAP_SYS_PTRACE"),
    ],
)
def test_says_what_would_help(uid: int, owner: int | None, scope: int, words: str) -> None:
    assert words in way_out(uid, owner, scope)


def test_a_process_that_is_gone_cannot_be_seen() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert "cannot be seen" in how_to_read(child)
