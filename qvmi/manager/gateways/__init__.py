"""Gateways: other tools look at a machine through these while qvmi holds its sockets."""
