"""Capabilities by name.

References: Linux include/uapi/linux/capability.h, capabilities(7). A set is 64 bits since 2.6.25,
two words of 32 up to 6.2 and one of 64 since (f122a08b197d); in memory both are the same.
"""

from typing import Final

from qvmi.semantics.rows.credentials import CapabilitySet

__all__ = ["capability_set"]

_NAMES: Final = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid"),
    *("setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw"),
    *("ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct"),
    *("sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod"),
    *("lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog"),
    *("wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore"),
)


def capability_set(number: int) -> CapabilitySet:
    """This names the capabilities of a set, as libcap does: by number where there is no name.

    Args:
        number: a bit for each.
    """
    bits = (bit for bit in range(number.bit_length()) if number >> bit & 1)
    return CapabilitySet(
        number, tuple(f"cap_{_NAMES[bit]}" if bit < len(_NAMES) else str(bit) for bit in bits)
    )
