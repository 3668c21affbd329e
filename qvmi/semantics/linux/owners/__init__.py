"""Whose a page of memory is."""
