"""The rows that a guest answers with, each kind in the file of what it is about."""
