"""Ways to the memory of a live guest, from outside."""
