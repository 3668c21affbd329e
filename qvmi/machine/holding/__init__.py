"""How a guest is stopped, held and changed, and runs on whatever happens."""
