"""Volatility 3's plugins on a guest of ours: the only room that imports Volatility.

Volatility is optional (``qvmi[volatility]``) and takes a third of a second to import. `bridge` and the
modules that say what questions and answers look like do without it; the others are imported by `bridge` when
a plugin is asked for.
"""
