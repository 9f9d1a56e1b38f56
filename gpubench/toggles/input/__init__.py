"""Toggles of what a step is given: batch, tiles, and where they come from."""
