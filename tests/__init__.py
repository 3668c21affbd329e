"""The tests: claims about qvmi, each checked against an oracle that shares no code with it."""
