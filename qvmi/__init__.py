"""qvmi watches a QEMU virtual machine from outside: which Linux runs there and what runs in it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
