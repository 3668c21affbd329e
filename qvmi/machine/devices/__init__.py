"""Virtual disks and network cards, seen from the host."""
