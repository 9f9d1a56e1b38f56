"""Toggles of the numbers that are computed: precision, and how kernels are picked."""
