"""Volatility 3's plugins on a guest of ours: the only room that imports Volatility.

Only the modules `context`, `layers`, `plugins`, `rendering`, `running` and `symbol_table` import it, and only
`bridge` imports those, when a plugin is asked for: Volatility is an optional part (``qvmi[volatility]``) and
takes a third of a second to import.
"""
