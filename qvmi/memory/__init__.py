"""Guest memory: where RAM lies, how its bytes are read, and virtual address spaces over it."""
