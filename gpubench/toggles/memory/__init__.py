"""Toggles of what is kept in memory, and of how it gets there."""
