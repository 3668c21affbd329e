"""The ``qvmi`` command."""
