"""Toggles that are set before Python starts, and of the process's threads."""
