"""Settings by which the kernel starts programs, changed from outside."""

import pytest

from qvmi.codepacks.detectors.kernel_settings import KernelSettings
from tests.guests.kernel_packs.tampered_kernel import Tampered


def test_the_settings_are_those_that_the_guest_has(kernel: Tampered) -> None:
    assert kernel.look(KernelSettings()) == []
    rows = {row.name: row for row in kernel.linux.settings()}
    assert rows["core_pattern"].value == "core"
    assert rows["modprobe_path"].value == "/nothing"  # tests/guests/lab/init/init.c
    for name in ("modprobe_path", "core_pattern", "poweroff_cmd"):
        assert rows[name].address == kernel.symbols[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modprobe_path", b"/proc/123/fd/7"),
        ("modprobe_path", b"x"),
        ("modprobe_path", b"/usr/../home/u/x"),
    ],
)
def test_a_program_that_anybody_may_have_put_there_is_told(
    kernel: Tampered, name: str, value: bytes
) -> None:
    place = kernel.symbols[name]
    with kernel.altered(place, value + b"\0"):
        [finding] = kernel.look(KernelSettings())
    assert kernel.look(KernelSettings()) == []
    assert finding.evidence[0].address == place
    assert finding.evidence[0].facts["value"] == value.decode()
    assert (finding.severity, finding.technique) == ("high", "T1546")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modprobe_path", b"/usr/sbin/modprobe"),
        ("modprobe_path", b""),
        ("core_pattern", b"|/usr/share/apport/apport -p%p -- %E"),
        ("core_pattern", b"|/usr/lib/systemd/systemd-coredump %P"),
        ("core_pattern", b"/var/lib/cores/core.%p"),
        ("core_pattern", b"core.%e.%p"),
    ],
)
def test_what_distributions_set_is_no_alarm(kernel: Tampered, name: str, value: bytes) -> None:
    with kernel.altered(kernel.symbols[name], value + b"\0"):
        assert kernel.look(KernelSettings()) == []


def test_a_value_without_an_end_is_read_no_further(kernel: Tampered) -> None:
    place = kernel.symbols["modprobe_path"]
    size = min(256, 4096 - place % 4096)
    with kernel.altered(place, b"\xff\x1b" * (size // 2)):
        [finding] = kernel.look(KernelSettings())
    assert "\x1b" not in finding.claim
