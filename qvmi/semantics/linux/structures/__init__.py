"""How Linux keeps things: lists, trees, tables, per-CPU variables, and how each is walked within bounds."""
