"""A virsh for hosts without libvirt: it hands QMP on to a socket, or fails as virsh does.

References: virsh(1), qemu-monitor-command; its messages are those of libvirt 9.0.
"""

import shlex
import sys
from pathlib import Path

__all__ = ["install_fake_virsh"]

# A first line that names Python itself could hold no path with a space in it, and none that is long.
_VIRSH = """#!/bin/sh
exec {python} -IS {program} "$@"
"""

# Runs alone, in a few milliseconds.
_PROGRAM = """import json, os, socket, sys, time

arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([os.getpid(), arguments, os.environ.get("LC_ALL")]) + "\\n")
uri = None
if arguments[0] == "--connect":
    _, uri, *arguments = arguments
quiet, command, option, domain, request = arguments
assert (quiet, command, option) == ("--quiet", "qemu-monitor-command", "--domain")

def fail(message):
    sys.stderr.write("error: " + message + "\\n")
    sys.exit(1)

if uri == "qemu:///nowhere":
    fail("failed to connect to the hypervisor")
if domain == "missing":
    fail("failed to get domain 'missing'")
if domain == "off":
    fail("Requested operation is not valid: domain is not running")
if domain == "silent":
    time.sleep(1000)
while domain in ("noisy", "complaining"):
    (sys.stdout if domain == "noisy" else sys.stderr).write("x" * 65536)
if domain == "garbage":
    print("no JSON")
    sys.exit(0)

with socket.socket(socket.AF_UNIX) as monitor, monitor.makefile("rwb") as lines:
    monitor.connect({socket!r})
    lines.readline()
    for one in ('{{"execute": "qmp_capabilities", "arguments": {{"enable": ["oob"]}}, "id": 0}}', request):
        lines.write(one.encode() + b"\\n")
        lines.flush()
        while b'"event"' in (answer := lines.readline()):
            pass
    sys.stdout.write(answer.decode())
"""


def install_fake_virsh(folder: Path, socket: str) -> Path:
    """This puts a ``virsh`` into a folder that is to be on PATH.

    Args:
        folder: where it goes.
        socket: the QMP socket that stands for every domain that does not stand for a failure.

    Returns:
        The file to which it writes a line of JSON for each run: pid, arguments, LC_ALL.
    """
    log = folder / "virsh.log"
    program = folder / "fake_virsh.py"
    program.write_text(_PROGRAM.format(log=str(log), socket=socket))
    virsh = folder / "virsh"
    words = {"python": shlex.quote(sys.executable), "program": shlex.quote(str(program))}
    virsh.write_text(_VIRSH.format_map(words))
    virsh.chmod(0o755)
    return log
