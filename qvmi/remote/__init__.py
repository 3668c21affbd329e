"""A machine seen from another process: its memory mapped, the rest asked of the manager over the bus."""
