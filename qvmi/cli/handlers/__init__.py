"""What runs each command."""
