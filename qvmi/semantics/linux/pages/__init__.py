"""The kernel's account of physical pages."""
