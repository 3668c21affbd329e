"""Processes and threads as the kernel schedules them, in each of the structures that hold them."""
