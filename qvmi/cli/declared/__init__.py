"""The commands as data: what each takes, and what is said of it."""
