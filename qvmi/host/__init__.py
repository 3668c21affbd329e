"""This host: where its sockets are, who owns them, and how one is connected to."""
