"""What a process has: rights, namespaces, files, mappings, memory."""
