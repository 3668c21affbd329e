"""Small programs of a test's own, made without a C library and carried into a guest over its serial line."""

import base64
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.guests.lab import Guest

__all__ = ["install"]

_MOST: Final = 2400
"""Bytes of a program: base64 makes a third more of them, and a request has room for 4,096."""

_START: Final = """
static long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}
__attribute__((used)) static void start(long *stack) { run((int)stack[0], (char **)(stack + 1)); }
__asm__(".global _start\\n_start: mov %rsp, %rdi; and $-16, %rsp; call start");
"""


def install(guest: Guest, path: str, source: str) -> None:
    """This puts an executable into a guest on x86-64.

    Args:
        guest: where to.
        path: in the guest.
        source: C that defines ``static void run(int count, char **words)``, which must not return, and
            may use ``call(number, a, b, c, d)`` for system calls.
    """
    declared = "static long call(long, long, long, long, long);\n"
    with tempfile.TemporaryDirectory() as folder:
        code, program = Path(folder, "it.c"), Path(folder, "it")
        code.write_text(f"{declared}{source}{_START}")
        options = (
            "-static",
            "-nostdlib",
            "-Os",
            "-fno-stack-protector",
            "-fno-pie",
            "-no-pie",
            "-s",
        )
        linked = "-Wl,-z,noseparate-code,--build-id=none,-n"
        subprocess.run(
            ["gcc", *options, "-fno-asynchronous-unwind-tables", linked, "-o", program, code],
            check=True,
            timeout=60,
        )
        data = program.read_bytes()
    assert len(data) <= _MOST, f"a program of {len(data)} bytes"
    text = base64.b64encode(data).decode()
    guest.run(f"echo {text} | base64 -d >{path}; chmod 755 {path}")
