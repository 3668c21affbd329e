"""Codepacks: detection logic over a guest, and what runs it and vouches for its findings."""
