"""Sockets, and the tables that hold them."""
