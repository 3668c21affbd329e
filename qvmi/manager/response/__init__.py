"""Coordinated response: alerts lead to action, as a playbook says."""
