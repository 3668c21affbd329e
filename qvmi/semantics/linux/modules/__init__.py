"""What is loaded into the kernel: code, symbols, types."""
