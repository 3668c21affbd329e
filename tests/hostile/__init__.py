"""Guests that lie: whatever their memory holds, qvmi ends soon, keeps small and raises its own errors."""
