"""Toggles of the training step."""
