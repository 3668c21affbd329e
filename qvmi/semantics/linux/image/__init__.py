"""Where the kernel image is in memory, and what it says of itself."""
