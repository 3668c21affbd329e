"""Real guests: the room that makes them, and the tests that need one."""
