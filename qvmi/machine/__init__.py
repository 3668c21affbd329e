"""A live guest: attaching, looking, and letting it run."""
