"""What this host lacks is told with how to get it."""

import os
from pathlib import Path

import pytest

from qvmi.manager.isolation.check import Check, Finding, Verdict
from qvmi.manager.isolation.host_setup import check_setup

SETTINGS = "proc/sys/kernel"


@pytest.fixture(name="root")
def host(tmp_path: Path) -> Path:
    (tmp_path / SETTINGS / "yama").mkdir(parents=True)
    (tmp_path / "proc/sys/user").mkdir()
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/user").touch()
    (tmp_path / "dev/net").mkdir(parents=True)
    return tmp_path


def found(root: Path, name: str) -> tuple[Finding, ...]:
    checks: dict[str, Check] = {check.name: check for check in check_setup(root)}
    return checks[name].findings


@pytest.mark.parametrize(
    ("setting", "value", "fix"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces="),
    ],
)
def test_what_forbids_user_namespaces_is_told_with_the_fix(
    root: Path, setting: str, value: str, fix: str
) -> None:
    (root / "proc/sys" / setting).write_text(value + "\n")
    (finding,) = found(root, "user namespaces")
    assert finding.verdict is Verdict.REFUTED
    assert f"{setting.replace('/', '.')} is {value}" in finding.evidence
    assert fix in finding.fix


def test_a_host_that_forbids_nothing_allows_user_namespaces(root: Path) -> None:
    (root / SETTINGS / "unprivileged_userns_clone").write_text("1\n")
    (finding,) = found(root, "user namespaces")
    assert finding.verdict is Verdict.PROVEN


def test_a_kernel_without_user_namespaces_is_told(root: Path) -> None:
    (root / "proc/self/ns/user").unlink()
    (finding,) = found(root, "user namespaces")
    assert finding.verdict is Verdict.REFUTED


@pytest.mark.parametrize("name", ["KVM", "network taps"])
def test_a_device_that_is_not_there_is_told_with_the_fix(root: Path, name: str) -> None:
    (finding,) = found(root, name)
    assert finding.verdict is Verdict.REFUTED
    assert "is not there" in finding.evidence
    assert finding.fix


def test_a_file_in_the_place_of_kvm_makes_no_machine(root: Path) -> None:
    (root / "dev/kvm").touch()
    (finding,) = found(root, "KVM")
    assert finding.verdict is Verdict.REFUTED
    assert "makes no virtual machine" in finding.evidence


@pytest.mark.parametrize("name", ["kernel/yama/ptrace_scope"])
def test_what_nobody_may_look_into_is_told(root: Path, name: str) -> None:
    (root / "proc/sys" / name).write_text("3\n")
    (finding,) = found(root, "memory of other processes")
    assert finding.verdict is Verdict.REFUTED
    assert "ptrace_scope is 3" in finding.evidence


def test_programs_that_are_missing_are_told_with_the_package(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = found(root, "QEMU")
    assert (finding.verdict, finding.fix) == (Verdict.REFUTED, "apt install qemu-system-x86")


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("QEMU emulator version 7.2.22 (Debian)", Verdict.PROVEN),
        ("QEMU emulator version 11.1.3", Verdict.PROVEN),
        ("QEMU emulator version 6.2.0", Verdict.NOT_CHECKABLE),
        ("what?", Verdict.NOT_CHECKABLE),
    ],
)
def test_an_older_qemu_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, verdict: Verdict
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (finding,) = found(root, "QEMU")
    assert finding.verdict is verdict
    assert str(program) in finding.evidence


def test_only_what_nothing_works_without_decides(root: Path) -> None:
    assert {check.name for check in check_setup(root) if check.decides} == {"Python", "QEMU"}
