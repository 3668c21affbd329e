"""Codepacks of others: folders, signatures, keys, and how their code is loaded."""
