"""Linux, one file for each subsystem, named as the kernel names it."""
