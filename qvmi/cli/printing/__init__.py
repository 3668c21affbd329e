"""What is shown, on a terminal, in pages and as JSON; all that a guest has named is made harmless."""
