"""Paths, mounts, inodes and the page cache."""
