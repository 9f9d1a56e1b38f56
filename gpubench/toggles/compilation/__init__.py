"""Toggles of compilers and graphs."""
