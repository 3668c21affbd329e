"""What this host has of what qvmi needs or can use, each with how to get it.

References: ptrace(2) (``/proc/sys/kernel/yama/ptrace_scope``); user_namespaces(7); Debian's
``kernel.unprivileged_userns_clone`` and Ubuntu's ``kernel.apparmor_restrict_unprivileged_userns``.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qvmi.bus.broker import find_mosquitto
from qvmi.errors import BrokerUnavailable
from qvmi.manager.isolation.check import Check, Finding, Verdict, not_checkable, proven, refuted

__all__ = ["check_setup"]

_ANSWERS_S: Final = 20.0
"""How long a program may take to tell its version: some ms, on a loaded host seconds."""
_MAX_SETTING: Final = 64  # bytes of a file in /proc/sys
_LEAST_PYTHON: Final = (3, 11)
_LEAST_QEMU: Final = (7, 2)
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)[.\d]*")
_EMULATORS: Final = ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-kvm", "kvm")
_SYSTEM_FOLDERS: Final = ("/usr/libexec",)


def check_setup(root: Path = Path("/")) -> tuple[Check, ...]:
    """This checks the host; only Python and QEMU decide, all else is of use alone.

    Args:
        root: of the file system, for what is read from /proc and /dev.
    """
    return (
        Check("Python", (_python(),)),
        Check("QEMU", (_qemu(),)),
        Check("mosquitto", (_mosquitto(),), decides=False),
        Check("KVM", (_kvm(root),), decides=False),
        Check("memory of other processes", (_ptrace(root),), decides=False),
        Check("user namespaces", tuple(_user_namespaces(root)), decides=False),
        Check("network taps", (_device(root, "dev/net/tun", _TUN),), decides=False),
    )


_KVM: Final = "load kvm_intel or kvm_amd, and join the group kvm; without it QEMU runs at a tenth"
_KVM_CREATE_VM: Final = 0xAE01  # linux/kvm.h
_TUN: Final = "modprobe tun, or run as root; without it service VMs reach the bus by guestfwd"


def _python() -> Finding:
    shown = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _LEAST_PYTHON:
        return proven(shown)
    return refuted(shown, "install Python 3.11 or newer")


def _qemu() -> Finding:
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    program = next(filter(None, (shutil.which(each, path=folders) for each in _EMULATORS)), None)
    if program is None:
        return refuted("there is none in PATH", "apt install qemu-system-x86")
    said = _said(program, "--version")
    version = _VERSION.search(said)
    if version is None:
        return not_checkable(f"{program} tells no version: {said[:100]!r}", "reinstall it")
    shown = f"{program} {version[0].removeprefix('version ')}"
    if (int(version[1]), int(version[2])) < _LEAST_QEMU:
        return not_checkable(f"{shown}, older than what is tested", "install QEMU 7.2 or newer")
    return proven(shown)


def _mosquitto() -> Finding:
    try:
        program = find_mosquitto()
    except BrokerUnavailable as error:
        return refuted(*str(error).split(": ", 1))
    version = _VERSION.search(_said(str(program), "-h"))
    return proven(f"{program} {version[0].removeprefix('version ') if version else ''}".rstrip())


def _said(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a program that was found on PATH, asked for its version
            command, capture_output=True, timeout=_ANSWERS_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).decode(errors="backslashreplace")


def _device(root: Path, name: str, fix: str) -> Finding:
    path = root / name
    if not path.exists():
        return refuted(f"/{name} is not there", fix)
    if not os.access(path, os.R_OK | os.W_OK):
        return refuted(f"/{name} may not be opened by uid {os.geteuid()}", fix)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return refuted(f"/{name}: {error.strerror}", fix)
    return proven(f"/{name} can be opened")


def _kvm(root: Path) -> Finding:
    opened = _device(root, "dev/kvm", _KVM)
    if opened.verdict is not Verdict.PROVEN:
        return opened
    try:
        with (root / "dev/kvm").open("rb", buffering=0) as kvm:
            os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return refuted(f"/dev/kvm makes no virtual machine: {error.strerror}", _KVM)
    return proven("/dev/kvm makes virtual machines")


def _ptrace(root: Path) -> Finding:
    scope = _setting(root, "kernel/yama/ptrace_scope")
    if os.geteuid() == 0:
        shown = "we are root"
        if scope == "3":
            return refuted("ptrace_scope is 3: nobody may", "boot without it; it cannot be lowered")
        return proven(f"{shown}; ptrace_scope {scope or 'is not there'}")
    if scope in {None, "0"}:
        return proven(f"of our own user; ptrace_scope {scope or 'is not there'}")
    fix = "sysctl kernel.yama.ptrace_scope=0, or give QEMU a memory-backend-file with share=on"
    return refuted(f"ptrace_scope is {scope}: not even of our own user", fix)


def _user_namespaces(root: Path) -> Iterator[Finding]:
    refusals = (
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "give qvmi an AppArmor profile with `userns,`, or run the bus's set-up as root",
        ),
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    )
    allowed = True
    for name, refusal, fix in refusals:
        if _setting(root, name) == refusal:
            allowed = False
            yield refuted(f"{name.replace('/', '.')} is {refusal}", fix)
    if not (root / "proc/self/ns/user").exists():
        allowed = False
        yield refuted("the kernel has none", "run the bus's set-up as root")
    if allowed:
        yield proven("nothing forbids them")


def _setting(root: Path, name: str) -> str | None:
    try:
        with (root / "proc/sys" / name).open("rb") as file:
            return file.read(_MAX_SETTING).decode(errors="backslashreplace").strip()
    except OSError:
        return None
