"""Toggles of how attention is computed."""
