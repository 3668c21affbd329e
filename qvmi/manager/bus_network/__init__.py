"""The network that service VMs reach the bus by, and that the user VM has no way to."""
