"""What the bytes of a virtual disk mean: images, partitions and file systems, read and never written.

Why no library reads them is in docs/adr/0044. The guest has written every byte of it, and writes on while it
is read: nothing here believes a size, a length or a place, and all of it comes to an end.
"""
