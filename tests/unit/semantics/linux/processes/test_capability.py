"""Names of capabilities, beside capabilities(7) and linux/capability.h."""

import pytest

from qvmi.semantics.linux.processes.capability import capability_set


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0, "cap_chown"),
        (12, "cap_net_admin"),
        (16, "cap_sys_module"),
        (21, "cap_sys_admin"),
        (27, "cap_mknod"),
        (37, "cap_audit_read"),
        (40, "cap_checkpoint_restore"),
    ],
)
def test_each_has_the_name_of_its_number(bit: int, name: str) -> None:
    assert capability_set(1 << bit).names == (name,)


def test_a_set_is_told_in_the_order_of_numbers() -> None:
    assert capability_set(0x2401).names == ("cap_chown", "cap_net_bind_service", "cap_net_raw")
    assert capability_set(0).names == ()


def test_all_that_a_kernel_has_are_named() -> None:
    names = capability_set(0x1FF_FFFF_FFFF).names
    assert len(set(names)) == 41
    assert all(name.startswith("cap_") for name in names)


def test_one_without_a_name_is_its_number() -> None:
    assert capability_set(1 << 41 | 1 << 63).names == ("41", "63")
