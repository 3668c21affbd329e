"""The built-in codepacks, and what several of them share."""
