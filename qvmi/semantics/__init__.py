"""What the bytes of a guest mean: which system runs there, and what it holds."""
