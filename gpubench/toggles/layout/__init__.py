"""Toggles of memory layout."""
