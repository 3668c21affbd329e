"""Which kernel runs, and all that names things in it."""
