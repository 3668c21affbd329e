"""Claims about the repository around the code: its scripts, documents, contracts and plugins."""
