"""Searching guest memory, by a process of its own."""
