"""Where a distribution puts its programs: only root can write there."""

from typing import Final

__all__ = ["SYSTEM_FOLDERS"]

SYSTEM_FOLDERS: Final = (
    *("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/opt/"),
    *("/snap/", "/nix/store/", "/run/wrappers/"),
)
"""The last two are NixOS's, which keeps what is set-uid apart."""
