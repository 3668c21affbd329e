"""Whether the watched machine has a way to the bus: facts, and what they prove."""
