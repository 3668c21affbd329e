"""Kernel stacks, unwound."""
